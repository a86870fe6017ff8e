//! Figures of many accounts on one pool.

use serde::{Deserialize, Serialize};

use super::statistics::{median, median_ratio};

/// Of opening accounts one after the other, with a key, on a shared pool.
#[derive(Debug, Serialize, Deserialize)]
pub struct Opened {
    pub accounts: usize,
    /// Of the last thousand.
    pub median_seconds: f64,
    /// What the process takes more for each.
    pub bytes: f64,
}

/// Of the empty syncs of many accounts at once, by round.
#[derive(Debug, Serialize, Deserialize)]
pub struct Busy {
    pub accounts: usize,
    pub connections: usize,
    /// Syncs per second of the SDK on memory stores, and of the same on PostgreSQL.
    pub memory: Vec<f64>,
    pub store: Vec<f64>,
    /// Seconds of the processor for each sync: of this process on memory stores, of this process on
    /// PostgreSQL, and of the server. Other load on the machine does not change them.
    pub cpu: [Vec<f64>; 3],
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Accounts {
    pub opened: Vec<Opened>,
    pub busy: Busy,
}

impl Busy {
    /// The medians of both rates, and of their ratio.
    pub fn rates(&self) -> ([f64; 2], f64) {
        let medians = [&self.memory, &self.store].map(|rates| median(rates.clone()));
        (medians, median_ratio(&self.store, &self.memory))
    }

    pub fn cpu(&self) -> [f64; 3] {
        self.cpu.each_ref().map(|seconds| median(seconds.clone()))
    }
}
