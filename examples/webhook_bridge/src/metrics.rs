//! The metrics of `/metrics`, through the `metrics` facade, so that those of the key store are there, too.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::time::{Instant, interval};

use crate::{
    errors::{BridgeError, exit_code},
    inbox::Counts,
    withheld,
};

/// The last sync counts as recent for this long: a long poll of 30 s plus a slow response.
const RECENT_SYNC: Duration = Duration::from_secs(45);
/// Upper bounds of the histograms' buckets, in seconds.
const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];
/// How often the exporter moves new values into its histograms.
const UPKEEP: Duration = Duration::from_secs(5);

/// Install the recorder of this process. Without it the metrics go nowhere, and cost nothing.
pub fn install() -> Result<PrometheusHandle, BridgeError> {
    let failed = |error: metrics_exporter_prometheus::BuildError| {
        BridgeError::fatal(exit_code::UNEXPECTED, format!("metrics cannot be set up: {error}"))
    };
    let builder = PrometheusBuilder::new();
    let builder = builder.set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS);
    let handle = builder.and_then(PrometheusBuilder::install_recorder).map_err(failed)?;
    let exporter = handle.clone();
    tokio::spawn(async move {
        let mut ticks = interval(UPKEEP);
        loop {
            ticks.tick().await;
            exporter.run_upkeep();
        }
    });
    Ok(handle)
}

/// Counters since the process started, and gauges of the stored state.
pub struct Metrics {
    pub received: Counter,
    pub decrypted: Counter,
    pub delivered: Counter,
    pub retried: Counter,
    pub failed: Counter,
    pub malformed: Counter,
    pub gaps_abandoned: Counter,
    pub invitations_abandoned: Counter,
    pub positions_lost: Counter,
    pub webhook_failures: Counter,
    pub decryption: Histogram,
    pub delivery: Histogram,
    pending: Gauge,
    waiting: Gauge,
    dead_lettered: Gauge,
    gaps_open: Gauge,
    oldest_pending: Gauge,
    since_sync: Gauge,
    pub device_keys_uploaded: Flag,
    pub owner: Gauge,
    pub takeovers: Counter,
    pub standby: Gauge,
    pub device_cross_signed: Gauge,
    pub key_backup_enabled: Gauge,
    pub invitations_declined: Counter,
    started: Instant,
    synced: Mutex<Option<Instant>>,
}

const UNDECRYPTABLE: &str = "webhook_bridge_undecryptable_total";
const WITHHELD: &str = "webhook_bridge_keys_withheld_total";
const REMOVALS: &str = "webhook_bridge_removals_total";
/// The labels of these counters. Each counter is 0 from the start: Prometheus' `increase` does not see the
/// first value of one that appears with its first event.
const REASONS: [&str; 7] =
    ["no_key", "wrong_key", "corrupt_key", "malformed", "mismatched_sender", "replay", "other"];
const KINDS: [&str; 2] = ["kick", "ban"];

/// A gauge that is 0 or 1, and can be read.
pub struct Flag {
    gauge: Gauge,
    is_set: AtomicBool,
}

impl Flag {
    fn new(gauge: Gauge) -> Self {
        Self { gauge, is_set: AtomicBool::new(false) }
    }

    pub fn set(&self, value: bool) {
        self.is_set.store(value, Ordering::Relaxed);
        self.gauge.set(if value { 1 } else { 0 });
    }

    pub fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Relaxed)
    }
}

macro_rules! described {
    ($new:ident, $describe:ident, $name:literal, $help:literal) => {{
        $describe!(concat!("webhook_bridge_", $name), $help);
        $new!(concat!("webhook_bridge_", $name))
    }};
}

macro_rules! count {
    ($name:literal, $help:literal) => {
        described!(counter, describe_counter, $name, $help)
    };
}

macro_rules! current {
    ($name:literal, $help:literal) => {
        described!(gauge, describe_gauge, $name, $help)
    };
}

fn labelled_counters() {
    describe_counter!(UNDECRYPTABLE, "Messages that failed to decrypt, by reason");
    REASONS.iter().for_each(|reason| counter!(UNDECRYPTABLE, "reason" => *reason).increment(0));
    describe_counter!(WITHHELD, "Room keys that senders withheld, by code");
    withheld::names().for_each(|code| counter!(WITHHELD, "code" => code).increment(0));
    describe_counter!(REMOVALS, "Rooms that the bot was removed from: kick or ban");
    KINDS.iter().for_each(|kind| counter!(REMOVALS, "kind" => *kind).increment(0));
}

impl Default for Metrics {
    fn default() -> Self {
        describe_gauge!("webhook_bridge_build_info", "Always 1; the label is the version");
        gauge!("webhook_bridge_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1);
        labelled_counters();
        Self {
            received: count!("messages_received_total", "Messages received from the homeserver"),
            decrypted: count!("messages_decrypted_total", "Messages decrypted"),
            delivered: count!("messages_delivered_total", "Messages the webhook accepted"),
            retried: count!(
                "messages_retried_total",
                "Webhook requests that repeat one that failed or was rejected"
            ),
            failed: count!(
                "messages_failed_total",
                "Messages that were dead-lettered: see the log"
            ),
            malformed: count!(
                "events_malformed_total",
                "Events without a valid id, sender or session id"
            ),
            gaps_abandoned: count!(
                "gaps_abandoned_total",
                "Gaps that were abandoned before they were filled"
            ),
            invitations_abandoned: count!(
                "invitations_abandoned_total",
                "Invitations that could not be accepted within the retry timeout"
            ),
            positions_lost: count!(
                "sync_positions_lost_total",
                "Times the homeserver rejected the stored sync position"
            ),
            webhook_failures: count!(
                "webhook_failures_total",
                "Webhook requests without a 2xx response"
            ),
            decryption: described!(
                histogram,
                describe_histogram,
                "decryption_seconds",
                "Time to decrypt a message, with its reads of the database"
            ),
            delivery: described!(
                histogram,
                describe_histogram,
                "delivery_seconds",
                "Time of a webhook request, whatever its outcome"
            ),
            pending: current!("messages_pending", "Messages to be decrypted and delivered"),
            waiting: current!("messages_waiting_for_key", "Messages whose key is missing"),
            dead_lettered: current!(
                "messages_dead_lettered",
                "Dead-lettered messages that are stored"
            ),
            gaps_open: current!("gaps_open", "Gaps that are being filled"),
            oldest_pending: current!(
                "oldest_pending_age_seconds",
                "Age of the oldest pending message"
            ),
            since_sync: current!(
                "last_sync_age_seconds",
                "Time since the last committed sync, or since the start if there was none"
            ),
            device_keys_uploaded: Flag::new(current!(
                "device_keys_uploaded",
                "1 once the device keys are on the homeserver"
            )),
            device_cross_signed: current!(
                "device_cross_signed",
                "1 while the bot's identity has signed its device"
            ),
            key_backup_enabled: current!(
                "key_backup_enabled",
                "1 while room keys are uploaded to the key backup"
            ),
            invitations_declined: count!(
                "invitations_declined_total",
                "Invitations from users who are not on the allow-list"
            ),
            owner: current!("owner", "1 while this process owns the account"),
            takeovers: count!(
                "takeovers_total",
                "Owners that were alive when this process took the account over"
            ),
            standby: current!("standby", "1 while this process waits for another owner"),
            started: Instant::now(),
            synced: Mutex::default(),
        }
    }
}

impl Metrics {
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

    /// `reason` is one of [`REASONS`].
    pub fn undecryptable(&self, reason: &'static str) {
        debug_assert!(REASONS.contains(&reason), "{reason}");
        counter!(UNDECRYPTABLE, "reason" => reason).increment(1);
    }

    pub fn withheld(&self, code: &'static str) {
        counter!(WITHHELD, "code" => code).increment(1);
    }

    /// The bot was removed from a room by an event of one of these [`KINDS`].
    pub fn removed(&self, kind: &'static str) {
        debug_assert!(KINDS.contains(&kind), "{kind}");
        counter!(REMOVALS, "kind" => kind).increment(1);
    }

    /// Set the gauges that are read when they are scraped.
    pub fn refresh(&self, counts: Option<Counts>) {
        let since = self.since_sync().unwrap_or_else(|| self.started.elapsed());
        self.since_sync.set(since.as_secs_f64());
        if let Some(counts) = counts {
            self.pending.set(counts.pending as f64);
            self.waiting.set(counts.waiting as f64);
            self.dead_lettered.set(counts.failed as f64);
            self.gaps_open.set(counts.gaps as f64);
            self.oldest_pending.set(counts.oldest_pending);
        }
    }
}
