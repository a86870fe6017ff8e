//! The store's look-up, compared with the same prepared statement on bare tokio-postgres, over a Unix
//! socket. The memory store's look-up stands for the cost of decoding, as it decodes too.
//!
//! The floor is each statement followed by the memory store's look-up of the same key: what a program
//! without a store would need. Decoding in a loop of its own is faster, as its code and data stay in the
//! processor's caches.

use serde::{Deserialize, Serialize};

use super::statistics;

/// Seconds per look-up, measured alternately.
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

    /// The store's time as a multiple of the sum of both parts, each measured in a loop of its own.
    fn ratio_to_separate_loops(&self) -> f64 {
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
             (medians of {} rounds)",
            microseconds(&self.store),
            microseconds(&self.floor),
            self.ratio(),
            microseconds(&self.bare),
            microseconds(&self.decoding),
            self.ratio_to_separate_loops(),
            self.store.len()
        )
    }
}
