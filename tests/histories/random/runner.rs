//! Draws histories, runs them on all processors, and shrinks the first that fails.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use tokio::{runtime::Runtime, time::timeout};

use super::{
    environment::Environment,
    fixtures::Fixtures,
    harness::{Harness, Verdict},
    matrix::Configuration,
    steps::Step,
    strategies,
};

const HISTORIES: u64 = 240;
/// Histories after which a worker makes a new database.
const HISTORIES_PER_DATABASE: u64 = 1000;
/// Longer than any step takes, unless it hangs.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

pub fn run() {
    Fixtures::get();
    if let Some(seed) = number("HISTORY_SEED") {
        let worker = Worker::new();
        return worker.run(seed).unwrap_or_else(|report| panic!("{report}"));
    }
    let count = number("HISTORIES").unwrap_or(HISTORIES);
    let first = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() << 20;
    println!("{count} histories, HISTORY_SEED={first} to {}", first + count - 1);
    let started = Instant::now();
    let next = AtomicU64::new(first);
    let workers = thread::available_parallelism().unwrap().get();
    thread::scope(|scope| {
        let workers: Vec<_> =
            (0..workers).map(|_| scope.spawn(|| work(&next, first + count))).collect();
        for worker in workers {
            if let Err(report) = worker.join().unwrap() {
                // Stops the other workers.
                next.store(first + count, Ordering::Relaxed);
                panic!("{report}");
            }
        }
    });
    println!("figure | random histories, each with the cache on and off | {count} |");
    println!("{count} histories in {:?}", started.elapsed());
}

fn work(next: &AtomicU64, end: u64) -> Verdict {
    loop {
        let worker = Worker::new();
        for _ in 0..HISTORIES_PER_DATABASE {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return Ok(());
            }
            if let Err(report) = worker.run(seed) {
                next.store(end, Ordering::Relaxed);
                return Err(report);
            }
        }
    }
}

/// A database and a runtime, on which histories run one after another.
struct Worker {
    environment: Environment,
    runtime: Runtime,
    histories: AtomicU64,
}

impl Worker {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        Self {
            environment: runtime.block_on(Environment::make()),
            runtime,
            histories: AtomicU64::new(0),
        }
    }

    /// Runs the history of this seed in the configurations that `Configuration::of` chooses for it.
    fn run(&self, seed: u64) -> Verdict {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let config = Config {
            cases: 1,
            failure_persistence: None,
            max_shrink_iters: 2000,
            ..Config::default()
        };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(config, rng);
        let outcome = runner.run(&strategies::history(), |steps| {
            for configuration in Configuration::of(seed) {
                self.run_in(configuration, &steps).map_err(TestCaseError::fail)?;
            }
            Ok(())
        });
        outcome.map_err(|error| match error {
            TestError::Fail(reason, steps) => {
                format!("HISTORY_SEED={seed}: {reason}\nthe shortest history: {steps:#?}")
            }
            TestError::Abort(reason) => format!("HISTORY_SEED={seed}: {reason}"),
        })
    }

    fn run_in(&self, configuration: Configuration, steps: &[Step]) -> Verdict {
        let account = format!("{}", self.histories.fetch_add(1, Ordering::Relaxed));
        self.runtime.block_on(async {
            let mut harness = Harness::new(&self.environment, configuration, account).await;
            for (number, step) in steps.iter().enumerate() {
                let verdict = timeout(STEP_TIMEOUT, harness.apply(step)).await;
                let verdict =
                    verdict.unwrap_or_else(|_| Err(format!("no result within {STEP_TIMEOUT:?}")));
                verdict.map_err(|error| format!("{configuration:?}, step {number}: {error}"))?;
            }
            let at_the_end = |error| format!("{configuration:?}, at the end: {error}");
            harness.compare().await.map_err(at_the_end)?;
            harness.open_another(true).await?;
            harness.compare().await.map_err(|error| {
                format!("{configuration:?}, in a store opened at the end: {error}")
            })
        })
    }
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {value}")))
}
