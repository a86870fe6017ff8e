//! Random and repeated runs: their counts, seeds and figures.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

/// How often something is done: in every run, or in the long one.
pub fn rounds(quick: usize, long: usize) -> usize {
    if std::env::var_os("RELIABILITY_LONG").is_some() { long } else { quick }
}

/// Chance that can be repeated.
pub fn seeded(test: &str) -> fastrand::Rng {
    let given = std::env::var("RELIABILITY_SEED").ok();
    let seed = given.map_or_else(|| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("{test}: RELIABILITY_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// A line for `docs/reliability.md`, which `scripts/reliability` collects.
pub fn figure(what: &str, value: impl Display) {
    println!("figure | {what} | {value} |");
}

pub fn milliseconds(rng: &mut fastrand::Rng, limit: u64) -> Duration {
    Duration::from_micros(rng.u64(0..limit * 1000))
}

/// Waits for what must come about; how long is no matter.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < Duration::from_secs(60), "still not after 60 s: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
