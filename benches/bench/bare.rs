//! The store's look-up beside the same prepared statement on bare tokio-postgres, over a Unix socket.
//! What decoding costs is what the memory store's look-up takes, for it decodes too.
//!
//! The floor is each statement followed by the memory store's look-up of the same key, as somebody
//! would live with who has neither our store nor another. Decoding in a loop of its own is faster:
//! there the processor has nothing else to do, and waits for nobody.

use serde::{Deserialize, Serialize};

use super::statistics;

/// Seconds per look-up, measured in turns.
#[derive(Default, Serialize, Deserialize)]
pub struct Comparison {
    pub store: Vec<f64>,
    /// The bare statement, and then the memory store's look-up.
    pub floor: Vec<f64>,
    pub bare: Vec<f64>,
    pub decoding: Vec<f64>,
}

impl Comparison {
    /// The store's time as a multiple of the floor.
    pub fn ratio(&self) -> f64 {
        statistics::median_ratio(&self.store, &self.floor)
    }

    /// As a multiple of the sum of both, each measured in a loop of its own.
    fn ratio_apart(&self) -> f64 {
        let sum: Vec<f64> =
            self.bare.iter().zip(&self.decoding).map(|(bare, decoding)| bare + decoding).collect();
        statistics::median_ratio(&self.store, &sum)
    }

    pub fn summary(&self) -> String {
        let microseconds = |values: &[f64]| statistics::median(values.to_vec()) * 1e6;
        format!(
            "A look-up over a Unix socket: {:.1} µs. The bare statement and the memory store's \
             look-up, one after the other: {:.1} µs, ratio {:.2}. Each in a loop of its own, where \
             decoding has the processor's caches to itself: {:.1} µs and {:.1} µs, ratio {:.2} \
             (medians of {} turns)",
            microseconds(&self.store),
            microseconds(&self.floor),
            self.ratio(),
            microseconds(&self.bare),
            microseconds(&self.decoding),
            self.ratio_apart(),
            self.store.len()
        )
    }
}
