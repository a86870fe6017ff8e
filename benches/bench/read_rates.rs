//! Point reads of concurrent tasks: the store's shared connections, compared with a checkout for each read.

use serde::{Deserialize, Serialize};

use super::statistics::{median, median_ratio};

/// Reads per second, by round.
#[derive(Default, Serialize, Deserialize)]
pub struct ReadRates {
    pub transport: String,
    pub tasks: usize,
    /// A checkout of the pool for each read.
    pub checkout: Vec<f64>,
    pub store: Vec<f64>,
    /// Four connections, each read by a quarter of the tasks.
    pub bare: Vec<f64>,
}

impl ReadRates {
    /// The medians: a checkout each, the store, bare connections. Then the ratios of the last two to
    /// the first.
    pub fn summary(&self) -> ([f64; 3], [f64; 2]) {
        let rates = [&self.checkout, &self.store, &self.bare].map(|rates| median(rates.clone()));
        let ratios = [&self.store, &self.bare].map(|rates| median_ratio(rates, &self.checkout));
        (rates, ratios)
    }
}
