//! Shared code of the benchmarks.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod accounts;
pub mod bare;
pub mod contenders;
pub mod criterion_rounds;
pub mod delay;
pub mod read_rates;
pub mod results;
pub mod statistics;

/// The extent of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Everything once, on little data: `--test`, and `cargo test --benches`.
    Test,
    /// Less data, shorter: with `BENCH_QUICK` set.
    Quick,
    Full,
}

impl Scale {
    pub fn of_this_run() -> Self {
        let has = |wanted: &str| std::env::args().any(|argument| argument == wanted);
        if has("--test") || !has("--bench") {
            Self::Test
        } else if std::env::var_os("BENCH_QUICK").is_some() {
            Self::Quick
        } else {
            Self::Full
        }
    }

    pub fn pick<T>(self, test: T, quick: T, full: T) -> T {
        match self {
            Self::Test => test,
            Self::Quick => quick,
            Self::Full => full,
        }
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}
