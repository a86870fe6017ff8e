//! A mock webhook that records its requests.

use std::sync::Arc;

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::Response,
};
use serde_json::Value;
use tokio::net::TcpListener;

use super::record::{Record, Reply};

/// One request to the webhook, accepted or not.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub key: String,
    pub room: String,
    pub body: String,
    pub message: Value,
    headers: http::HeaderMap,
    /// The body as received.
    pub raw: Vec<u8>,
}

// Not used by the soak test.
#[allow(dead_code)]
impl Delivery {
    pub fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name)?.to_str().ok().map(ToOwned::to_owned)
    }
}

pub struct Webhook {
    pub url: String,
    pub requests: Record<Delivery>,
}

impl Webhook {
    pub async fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let webhook = Arc::new(Self { url, requests: Record::new() });
        let router = Router::new().fallback(answer).with_state(webhook.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        webhook
    }

    /// Wait for messages with these bodies, in any order.
    pub async fn until_received(&self, bodies: &[&str]) {
        self.requests
            .until(&format!("the messages {bodies:?}"), |requests| {
                bodies.iter().all(|body| requests.iter().any(|delivery| delivery.body == *body))
            })
            .await;
    }

    pub fn bodies(&self) -> Vec<String> {
        self.requests.all().into_iter().map(|delivery| delivery.body).collect()
    }
}

async fn answer(State(webhook): State<Arc<Webhook>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let message: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
    let key = parts.headers.get("Idempotency-Key").and_then(|key| key.to_str().ok());
    let delivery = Delivery {
        key: key.unwrap_or_default().to_owned(),
        room: text("room_id"),
        body: text("body"),
        message: message.clone(),
        headers: parts.headers.clone(),
        raw: body.to_vec(),
    };
    webhook.requests.add(delivery.clone());
    webhook.requests.apply_rules(&delivery).unwrap_or(Reply::text(200, "")).send().await
}
