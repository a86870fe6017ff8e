//! Counters for `/metrics`.

use prometheus::{IntCounter, IntGauge, Registry, TextEncoder};

use crate::inbox::Counts;

/// Counters since the process began, and gauges of what is stored.
pub struct Metrics {
    registry: Registry,
    pub received: IntCounter,
    pub decrypted: IntCounter,
    pub delivered: IntCounter,
    pub failed: IntCounter,
    pub gaps_abandoned: IntCounter,
    pending: IntGauge,
    waiting: IntGauge,
    parked: IntGauge,
}

impl Metrics {
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(format!("webhook_bridge_{name}"), help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(format!("webhook_bridge_{name}"), help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        Ok(Self {
            received: counter("messages_received_total", "Messages taken from the homeserver")?,
            decrypted: counter("messages_decrypted_total", "Messages decrypted")?,
            delivered: counter("messages_delivered_total", "Messages the webhook accepted")?,
            failed: counter("messages_failed_total", "Messages given up: see the log")?,
            gaps_abandoned: counter("gaps_abandoned_total", "Gaps the homeserver would not fill")?,
            pending: gauge("messages_pending", "Messages to be decrypted and delivered")?,
            waiting: gauge("messages_waiting", "Messages whose key has not come")?,
            parked: gauge("messages_parked", "Messages given up and kept")?,
            registry,
        })
    }

    pub fn set_counts(&self, counts: Counts) {
        self.pending.set(counts.pending);
        self.waiting.set(counts.waiting);
        self.parked.set(counts.failed);
    }

    /// Prometheus' text format.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}
