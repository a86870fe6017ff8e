//! What `/metrics` shows.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};
use tokio::time::Instant;

use crate::inbox::Counts;

/// A long poll of 30 s, and some more for a slow answer: so long ago a sync may have been committed.
const LATELY: Duration = Duration::from_secs(45);

/// Counters since the process began, and gauges of what is stored.
pub struct Metrics {
    registry: Registry,
    pub received: IntCounter,
    pub decrypted: IntCounter,
    pub delivered: IntCounter,
    pub failed: IntCounter,
    pub unreadable: IntCounter,
    pub gaps_abandoned: IntCounter,
    pub invitations_abandoned: IntCounter,
    pub positions_lost: IntCounter,
    pub webhook_failures: IntCounter,
    undecryptable: IntCounterVec,
    pending: IntGauge,
    waiting: IntGauge,
    parked: IntGauge,
    gaps_open: IntGauge,
    oldest_pending: Gauge,
    since_sync: Gauge,
    pub device_keys_uploaded: IntGauge,
    pub owner: IntGauge,
    pub standby: IntGauge,
    started: Instant,
    synced: Mutex<Option<Instant>>,
}

/// Makes metrics with our prefix, and registers them.
struct Maker(Registry);

impl Maker {
    fn register<M: prometheus::core::Collector + Clone + 'static>(
        &self,
        metric: prometheus::Result<M>,
    ) -> prometheus::Result<M> {
        let metric = metric?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.register(IntCounter::new(prefixed(name), help))
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.register(IntGauge::new(prefixed(name), help))
    }

    fn seconds(&self, name: &str, help: &str) -> prometheus::Result<Gauge> {
        self.register(Gauge::new(prefixed(name), help))
    }
}

fn prefixed(name: &str) -> String {
    format!("webhook_bridge_{name}")
}

impl Metrics {
    pub fn new() -> prometheus::Result<Self> {
        let make = Maker(Registry::new());
        let version = Opts::new(prefixed("build_info"), "Always 1; the version is a label")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        make.register(IntGauge::with_opts(version))?.set(1);
        let undecryptable =
            Opts::new(prefixed("undecryptable_total"), "Messages not decrypted, by reason");
        Ok(Self {
            received: make.counter("messages_received_total", "Messages of the homeserver")?,
            decrypted: make.counter("messages_decrypted_total", "Messages decrypted")?,
            delivered: make.counter("messages_delivered_total", "Messages the webhook accepted")?,
            failed: make.counter("messages_failed_total", "Messages given up: see the log")?,
            unreadable: make
                .counter("events_unreadable_total", "Events without a readable id or sender")?,
            gaps_abandoned: make.counter("gaps_abandoned_total", "Gaps that were given up")?,
            invitations_abandoned: make
                .counter("invitations_abandoned_total", "Invitations that were given up")?,
            positions_lost: make.counter(
                "sync_positions_lost_total",
                "Times the homeserver did not know the stored position",
            )?,
            webhook_failures: make
                .counter("webhook_failures_total", "Calls of the webhook without a 2xx")?,
            undecryptable: make.register(IntCounterVec::new(undecryptable, &["reason"]))?,
            pending: make.gauge("messages_pending", "Messages to be decrypted and delivered")?,
            waiting: make.gauge("messages_waiting", "Messages whose key has not come")?,
            parked: make.gauge("messages_parked", "Messages given up and kept")?,
            gaps_open: make.gauge("gaps_open", "Gaps that are being filled")?,
            oldest_pending: make
                .seconds("oldest_pending_seconds", "Age of the oldest message to be delivered")?,
            since_sync: make.seconds(
                "seconds_since_sync",
                "Since a sync was read and committed, or since the start if none was",
            )?,
            device_keys_uploaded: make
                .gauge("device_keys_uploaded", "1 once the homeserver has our device's keys")?,
            owner: make.gauge("owner", "1 while the account is ours")?,
            standby: make.gauge("standby", "1 while another process has the account")?,
            registry: make.0,
            started: Instant::now(),
            synced: Mutex::default(),
        })
    }

    /// A sync was read and committed.
    pub fn synced(&self) {
        *self.synced.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// How long ago one last was, if ever.
    pub fn since_sync(&self) -> Option<Duration> {
        Some(self.synced.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.elapsed())
    }

    /// Whether one was lately: the homeserver works.
    pub fn synced_lately(&self) -> bool {
        self.since_sync().is_some_and(|since| since < LATELY)
    }

    pub fn undecryptable(&self, reason: &str) {
        self.undecryptable.with_label_values(&[reason]).inc();
    }

    pub fn set_counts(&self, counts: Counts) {
        self.pending.set(counts.pending);
        self.waiting.set(counts.waiting);
        self.parked.set(counts.failed);
        self.gaps_open.set(counts.gaps);
        self.oldest_pending.set(counts.oldest_pending);
    }

    /// Prometheus' text format.
    pub fn render(&self) -> prometheus::Result<String> {
        let since = self.since_sync().unwrap_or_else(|| self.started.elapsed());
        self.since_sync.set(since.as_secs_f64());
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}
