//! Draws histories, runs them on all processors, and shrinks the first that fails.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use tokio::{runtime::Runtime, time::timeout};

use super::{
    matrix::Configuration,
    place::Place,
    steps::Step,
    strategies,
    universe::Universe,
    world::{Verdict, World},
};

const HISTORIES: u64 = 240;
/// A database is left behind when it has seen so many.
const HISTORIES_A_DATABASE: u64 = 1000;
/// Nothing takes that long, unless it hangs.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

pub fn run() {
    Universe::get();
    if let Some(seed) = number("HISTORY_SEED") {
        let bench = Bench::new();
        return bench.run(seed).unwrap_or_else(|report| panic!("{report}"));
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
                // The other workers find nothing more to do.
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
        let bench = Bench::new();
        for _ in 0..HISTORIES_A_DATABASE {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return Ok(());
            }
            if let Err(report) = bench.run(seed) {
                next.store(end, Ordering::Relaxed);
                return Err(report);
            }
        }
    }
}

/// A database and a runtime, on which one history after the other is run.
struct Bench {
    place: Place,
    runtime: Runtime,
    histories: AtomicU64,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        Self { place: runtime.block_on(Place::make()), runtime, histories: AtomicU64::new(0) }
    }

    /// Runs the history of this seed, in all the configurations that are its turn.
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
                self.live(configuration, &steps).map_err(TestCaseError::fail)?;
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

    fn live(&self, configuration: Configuration, steps: &[Step]) -> Verdict {
        let account = format!("{}", self.histories.fetch_add(1, Ordering::Relaxed));
        self.runtime.block_on(async {
            let mut world = World::new(&self.place, configuration, account).await;
            for (number, step) in steps.iter().enumerate() {
                let verdict = timeout(STEP_TIMEOUT, world.take(step)).await;
                let verdict = verdict.unwrap_or_else(|_| Err("it hangs".to_owned()));
                verdict.map_err(|error| format!("{configuration:?}, step {number}: {error}"))?;
            }
            let at_the_end = |error| format!("{configuration:?}, at the end: {error}");
            world.compare().await.map_err(at_the_end)?;
            world.open_another(true).await?;
            world.compare().await.map_err(|error| {
                format!("{configuration:?}, in a store opened at the end: {error}")
            })
        })
    }
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is no number: {value}")))
}
