//! A bot's day: a real `OlmMachine` on a store, and the cost of each step.
//!
//! The homeserver and the bot's friends are part of the scenario, but not of the cost.

pub mod counted;
mod day;
mod friends;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use matrix_sdk_crypto::{
    OlmError,
    store::{DynCryptoStore, IntoCryptoStore},
};
use matrix_sdk_postgres::PostgresCryptoStore;

pub use self::day::{BigRoom, run};
use super::proxy::Proxy;

/// The store under test.
pub struct Subject {
    store: Arc<DynCryptoStore>,
    /// Set if the store is this crate's, which makes one transaction of a sync.
    postgres: Option<PostgresCryptoStore>,
}

impl Subject {
    pub fn other(store: impl IntoCryptoStore) -> Self {
        Self { store: store.into_crypto_store(), postgres: None }
    }

    pub fn postgres(store: PostgresCryptoStore) -> Self {
        Self { store: store.clone().into_crypto_store(), postgres: Some(store) }
    }

    pub fn store(&self) -> Arc<DynCryptoStore> {
        self.store.clone()
    }

    /// Runs the future within `atomically`, if the store has it.
    async fn atomically<T>(&self, future: impl Future<Output = Result<T, OlmError>>) -> T {
        match &self.postgres {
            Some(store) => store.atomically(future).await.unwrap(),
            None => future.await.unwrap(),
        }
    }
}

/// One step of the day, and its cost.
#[derive(Clone, Debug)]
pub struct Step {
    pub name: &'static str,
    pub time: Duration,
    pub calls: usize,
    /// Counted only where there is a proxy.
    pub round_trips: usize,
    pub commits: usize,
}

/// Measures the steps.
pub struct Meter<'a> {
    calls: Arc<AtomicUsize>,
    wire: Option<&'a Proxy>,
    steps: Vec<Step>,
}

impl<'a> Meter<'a> {
    pub fn new(wire: Option<&'a Proxy>) -> Self {
        Self { calls: Arc::default(), wire, steps: Vec::new() }
    }

    /// Runs a part of a step. Consecutive parts with the same name are added up.
    async fn measure<T>(&mut self, name: &'static str, part: impl Future<Output = T>) -> T {
        if self.steps.last().is_none_or(|step| step.name != name) {
            let zero = Duration::ZERO;
            self.steps.push(Step { name, time: zero, calls: 0, round_trips: 0, commits: 0 });
        }
        let (calls, wire) = (self.calls.load(Ordering::Relaxed), self.wire());
        let started = Instant::now();
        let result = part.await;
        let time = started.elapsed();
        let after = self.wire();
        let calls = self.calls.load(Ordering::Relaxed) - calls;
        if let Some(step) = self.steps.last_mut() {
            step.time += time;
            step.calls += calls;
            step.round_trips += after.0 - wire.0;
            step.commits += after.1 - wire.1;
        }
        result
    }

    fn wire(&self) -> (usize, usize) {
        self.wire.map_or((0, 0), |proxy| (proxy.round_trips(), proxy.commits()))
    }
}
