//! The metrics of `/metrics`.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};
use tokio::time::Instant;

use crate::inbox::Counts;

/// The last sync counts as recent for this long: a long poll of 30 s plus a slow response.
const RECENT_SYNC: Duration = Duration::from_secs(45);

/// Counters since the process started, and gauges of the stored state.
pub struct Metrics {
    registry: Registry,
    pub received: IntCounter,
    pub decrypted: IntCounter,
    pub delivered: IntCounter,
    pub failed: IntCounter,
    pub malformed: IntCounter,
    pub gaps_abandoned: IntCounter,
    pub invitations_abandoned: IntCounter,
    pub positions_lost: IntCounter,
    pub webhook_failures: IntCounter,
    undecryptable: IntCounterVec,
    pending: IntGauge,
    waiting: IntGauge,
    dead_lettered: IntGauge,
    gaps_open: IntGauge,
    oldest_pending: Gauge,
    since_sync: Gauge,
    pub device_keys_uploaded: IntGauge,
    pub owner: IntGauge,
    pub standby: IntGauge,
    pub device_cross_signed: IntGauge,
    pub key_backup_enabled: IntGauge,
    pub withheld: IntCounterVec,
    pub removals: IntCounterVec,
    pub invitations_declined: IntCounter,
    started: Instant,
    synced: Mutex<Option<Instant>>,
}

/// Creates metrics with the bridge's prefix, and registers them.
struct MetricFactory(Registry);

impl MetricFactory {
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
        let make = MetricFactory(Registry::new());
        let version = Opts::new(prefixed("build_info"), "Always 1; the label is the version")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        make.register(IntGauge::with_opts(version))?.set(1);
        let undecryptable = Opts::new(
            prefixed("undecryptable_total"),
            "Messages that failed to decrypt, by reason",
        );
        let withheld =
            Opts::new(prefixed("keys_withheld_total"), "Room keys that senders withheld, by code");
        let removals = Opts::new(
            prefixed("removals_total"),
            "Rooms that the bot was removed from: kick or ban",
        );
        Ok(Self {
            received: make
                .counter("messages_received_total", "Messages received from the homeserver")?,
            decrypted: make.counter("messages_decrypted_total", "Messages decrypted")?,
            delivered: make.counter("messages_delivered_total", "Messages the webhook accepted")?,
            failed: make.counter(
                "messages_failed_total",
                "Messages that were dead-lettered: see the log",
            )?,
            malformed: make
                .counter("events_malformed_total", "Events without a valid id or sender")?,
            gaps_abandoned: make.counter(
                "gaps_abandoned_total",
                "Gaps that were abandoned before they were filled",
            )?,
            invitations_abandoned: make.counter(
                "invitations_abandoned_total",
                "Invitations that could not be accepted within the retry timeout",
            )?,
            positions_lost: make.counter(
                "sync_positions_lost_total",
                "Times the homeserver rejected the stored sync position",
            )?,
            webhook_failures: make
                .counter("webhook_failures_total", "Webhook requests without a 2xx response")?,
            undecryptable: make.register(IntCounterVec::new(undecryptable, &["reason"]))?,
            pending: make.gauge("messages_pending", "Messages to be decrypted and delivered")?,
            waiting: make.gauge("messages_waiting_for_key", "Messages whose key is missing")?,
            dead_lettered: make
                .gauge("messages_dead_lettered", "Dead-lettered messages that are stored")?,
            gaps_open: make.gauge("gaps_open", "Gaps that are being filled")?,
            oldest_pending: make
                .seconds("oldest_pending_age_seconds", "Age of the oldest pending message")?,
            since_sync: make.seconds(
                "last_sync_age_seconds",
                "Time since the last committed sync, or since the start if there was none",
            )?,
            device_keys_uploaded: make
                .gauge("device_keys_uploaded", "1 once the device keys are on the homeserver")?,
            owner: make.gauge("owner", "1 while this process owns the account")?,
            standby: make.gauge("standby", "1 while this process waits for another owner")?,
            device_cross_signed: make
                .gauge("device_cross_signed", "1 once the bot's identity has signed its device")?,
            key_backup_enabled: make
                .gauge("key_backup_enabled", "1 while room keys are uploaded to the key backup")?,
            withheld: make.register(IntCounterVec::new(withheld, &["code"]))?,
            removals: make.register(IntCounterVec::new(removals, &["kind"]))?,
            invitations_declined: make.counter(
                "invitations_declined_total",
                "Invitations from users who are not on the allow-list",
            )?,
            registry: make.0,
            started: Instant::now(),
            synced: Mutex::default(),
        })
    }

    /// Record a committed sync.
    pub fn synced(&self) {
        *self.synced.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Time since the last committed sync, if there was one.
    pub fn since_sync(&self) -> Option<Duration> {
        Some(self.synced.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.elapsed())
    }

    /// Whether a sync was committed recently, which means that the homeserver works.
    pub fn synced_recently(&self) -> bool {
        self.since_sync().is_some_and(|since| since < RECENT_SYNC)
    }

    pub fn undecryptable(&self, reason: &str) {
        self.undecryptable.with_label_values(&[reason]).inc();
    }

    pub fn set_counts(&self, counts: Counts) {
        self.pending.set(counts.pending);
        self.waiting.set(counts.waiting);
        self.dead_lettered.set(counts.failed);
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
