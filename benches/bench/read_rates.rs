//! Point reads of many tasks at once: the store's shared connections beside a checkout for each read.

use serde::{Deserialize, Serialize};

use super::statistics::{median, median_ratio};

/// Reads a second, turn by turn.
#[derive(Default, Serialize, Deserialize)]
pub struct Crowd {
    pub place: String,
    pub tasks: usize,
    /// A checkout of the pool for each read.
    pub checkout: Vec<f64>,
    pub store: Vec<f64>,
    /// Four connections, each read by a quarter of the tasks.
    pub bare: Vec<f64>,
}

impl Crowd {
    /// The medians: a checkout each, the store, bare connections; and the last two beside the first.
    pub fn summary(&self) -> ([f64; 3], [f64; 2]) {
        let rates = [&self.checkout, &self.store, &self.bare].map(|rates| median(rates.clone()));
        let ratios = [&self.store, &self.bare].map(|rates| median_ratio(rates, &self.checkout));
        (rates, ratios)
    }
}
