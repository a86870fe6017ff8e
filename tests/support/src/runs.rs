//! Repetitions, seeds and figures of tests.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

/// Number of repetitions: `quick`, or `long` in the long run.
pub fn rounds(quick: usize, long: usize) -> usize {
    if std::env::var_os("RELIABILITY_LONG").is_some() { long } else { quick }
}

/// A random generator whose seed is printed, and taken from `RELIABILITY_SEED`.
pub fn seeded(test: &str) -> fastrand::Rng {
    let given = std::env::var("RELIABILITY_SEED").ok();
    let seed = given.map_or_else(|| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("{test}: RELIABILITY_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// Prints a figure for `docs/reliability.md`, which `scripts/reliability` collects.
pub fn figure(what: &str, value: impl Display) {
    println!("figure | {what} | {value} |");
}

pub fn milliseconds(rng: &mut fastrand::Rng, limit: u64) -> Duration {
    Duration::from_micros(rng.u64(0..limit * 1000))
}

/// Waits until the condition holds. The time limit only ends a hanging test.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < Duration::from_secs(60), "still not after 60 s: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
