//! The store's look-up beside the same prepared statement on bare tokio-postgres, over a Unix socket.
//! What decoding costs is what the memory store's look-up takes, for it decodes too.

use serde::{Deserialize, Serialize};

use super::statistics;

/// Seconds per look-up, measured in turns.
#[derive(Default, Serialize, Deserialize)]
pub struct Comparison {
    pub store: Vec<f64>,
    pub bare: Vec<f64>,
    pub decoding: Vec<f64>,
}

impl Comparison {
    /// The store's time as a multiple of the bare statement's and the decoding's.
    pub fn ratio(&self) -> f64 {
        let floor: Vec<f64> =
            self.bare.iter().zip(&self.decoding).map(|(bare, decoding)| bare + decoding).collect();
        statistics::median_ratio(&self.store, &floor)
    }

    pub fn summary(&self) -> String {
        let microseconds = |values: &[f64]| statistics::median(values.to_vec()) * 1e6;
        format!(
            "A look-up over a Unix socket: {:.1} µs; the bare statement {:.1} µs, decoding {:.1} µs; \
             ratio {:.2} (median of {} turns)",
            microseconds(&self.store),
            microseconds(&self.bare),
            microseconds(&self.decoding),
            self.ratio(),
            self.store.len()
        )
    }
}
