//! A webhook that remembers what it was sent.

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

/// One request to the webhook, whatever it was answered.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub key: String,
    pub room: String,
    pub body: String,
    pub message: Value,
}

pub struct Webhook {
    pub url: String,
    pub got: Record<Delivery>,
}

impl Webhook {
    pub async fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let webhook = Arc::new(Self { url, got: Record::new() });
        let router = Router::new().fallback(answer).with_state(webhook.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        webhook
    }

    /// Wait for messages with these texts; in which order does not matter.
    pub async fn has(&self, bodies: &[&str]) {
        self.got
            .until(&format!("the messages {bodies:?}"), |got| {
                bodies.iter().all(|body| got.iter().any(|delivery| delivery.body == *body))
            })
            .await;
    }

    pub fn bodies(&self) -> Vec<String> {
        self.got.all().into_iter().map(|delivery| delivery.body).collect()
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
    };
    webhook.got.add(delivery.clone());
    webhook.got.ruled(&delivery).unwrap_or(Reply::text(200, "")).send().await
}
