//! Records requests in order, and overrides replies with rules.

use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use axum::{body::Body, http::Response};
use serde_json::Value;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

/// Far longer than any wait takes; a test that reaches it has failed.
const LIMIT: Duration = Duration::from_secs(60);

type Rule<T> = Box<dyn Fn(&T) -> Option<Reply> + Send + Sync>;

/// Recorded requests, and rules that override the default replies.
pub struct Record<T> {
    seen: Mutex<Vec<T>>,
    rules: Mutex<Vec<Rule<T>>>,
    count: watch::Sender<usize>,
}

impl<T: Clone + std::fmt::Debug> Record<T> {
    pub fn new() -> Self {
        Self { seen: Mutex::default(), rules: Mutex::default(), count: watch::Sender::new(0) }
    }

    pub fn add(&self, entry: T) {
        lock(&self.seen).push(entry);
        self.count.send_modify(|count| *count += 1);
    }

    /// Add a rule that may reply to a request; newer rules take precedence.
    pub fn rule(&self, rule: impl Fn(&T) -> Option<Reply> + Send + Sync + 'static) {
        lock(&self.rules).push(Box::new(rule));
    }

    pub fn clear_rules(&self) {
        lock(&self.rules).clear();
    }

    pub fn apply_rules(&self, entry: &T) -> Option<Reply> {
        lock(&self.rules).iter().rev().find_map(|rule| rule(entry))
    }

    pub fn all(&self) -> Vec<T> {
        lock(&self.seen).clone()
    }

    pub fn count(&self, wanted: impl Fn(&T) -> bool) -> usize {
        lock(&self.seen).iter().filter(|entry| wanted(entry)).count()
    }

    /// Wait until `enough` is true for the recorded requests.
    pub async fn until(&self, what: &str, enough: impl Fn(&[T]) -> bool) {
        let mut count = self.count.subscribe();
        let met = count.wait_for(|_| enough(&lock(&self.seen)));
        if timeout(LIMIT, met).await.is_err() {
            panic!("waited too long for {what}: {:#?}", lock(&self.seen));
        }
    }

    /// Wait until `count` requests match `wanted`.
    pub async fn until_count(&self, what: &str, count: usize, wanted: impl Fn(&T) -> bool) {
        self.until(what, |all| all.iter().filter(|entry| wanted(entry)).count() >= count).await;
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A reply, optionally held back until a latch is opened.
#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    latch: Option<CancellationToken>,
}

impl Reply {
    pub fn json(status: u16, body: Value) -> Self {
        Self::text(status, &body.to_string())
    }

    pub fn text(status: u16, body: &str) -> Self {
        Self::bytes(status, body.as_bytes())
    }

    pub fn bytes(status: u16, body: &[u8]) -> Self {
        Self { status, headers: Vec::new(), body: body.to_owned(), latch: None }
    }

    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub fn after(mut self, latch: &CancellationToken) -> Self {
        self.latch = Some(latch.clone());
        self
    }

    pub async fn send(self) -> Response<Body> {
        if let Some(latch) = self.latch {
            latch.cancelled().await;
        }
        let mut response = Response::builder().status(self.status);
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        response.body(self.body.into()).unwrap()
    }
}
