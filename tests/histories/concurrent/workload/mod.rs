//! A process of the workload: opens accounts, writes and reads until it is requested to end or is killed.

mod actor;
mod machines;
mod outcome;
pub mod readers;
pub mod registers;
mod session;

use std::{
    io::Read,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::future::join_all;
use matrix_sdk_postgres::{
    OwnershipSettings, PoolSettings, PostgresStoreConfig, Takeover, Timeouts,
};
use serde::{Deserialize, Serialize};

pub use self::machines::create_machine;
use test_support::child_process;

use crate::concurrent::history::Journal;

/// Accounts with registers.
pub const ACCOUNTS: [&str; 2] = ["alpha", "beta"];
/// The account of the machine that encrypts.
pub const MACHINE: &str = "gamma";

/// The parameters of a process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    pub process: String,
    pub directory: PathBuf,
    pub seed: u64,
    pub url: String,
    /// Behind a pooler that does not support prepared statements.
    pub unprepared: bool,
    pub owners: bool,
    /// The room key that all processes write.
    pub session: serde_json::Value,
}

/// State that the tasks of the process share.
pub struct Process {
    pub task: Task,
    pub journal: Journal,
    ended: AtomicBool,
    names: AtomicU64,
}

impl Process {
    pub fn new(task: Task) -> Arc<Self> {
        let journal = Journal::create(&task.directory, &task.process);
        let (ended, names) = (AtomicBool::new(false), AtomicU64::new(0));
        Arc::new(Self { task, journal, ended, names })
    }

    pub fn has_ended(&self) -> bool {
        self.ended.load(SeqCst)
    }

    /// A unique name among all processes.
    pub fn name(&self, kind: &str) -> String {
        format!("{}:{kind}{}", self.journal.process(), self.names.fetch_add(1, SeqCst))
    }

    /// Short time limits, so that they expire in the run.
    pub fn config(
        &self,
        account: &str,
        label: String,
        rng: &mut fastrand::Rng,
    ) -> PostgresStoreConfig {
        let milliseconds = Duration::from_millis;
        let takeover = match rng.u32(0..8) {
            0 => Takeover::RefuseIfAlive,
            1 => Takeover::WaitUntilFree(milliseconds(1500)),
            _ => Takeover::Immediate,
        };
        let mut choose = |choices: &[u64]| milliseconds(*rng.choice(choices).unwrap());
        PostgresStoreConfig::new(&self.task.url, account)
            .pool(PoolSettings {
                max_size: 3,
                prepared_statements: !self.task.unprepared,
                connect_timeout: Some(milliseconds(1000)),
                wait_timeout: choose(&[1000, 3000]),
                ..Default::default()
            })
            .timeouts(Timeouts {
                statement: choose(&[400, 1000, 3000]),
                retry: choose(&[500, 2000, 6000]),
                atomically: milliseconds(2000),
                transaction_idle: milliseconds(300),
            })
            .access(OwnershipSettings {
                takeover,
                label,
                heartbeat_interval: milliseconds(500),
                ..Default::default()
            })
    }
}

/// Runs in the child process.
pub async fn run(task: &str) {
    let process = Process::new(serde_json::from_str(task).unwrap());
    registers::set_shared_session(process.task.session.clone());
    let mut rng = fastrand::Rng::with_seed(process.task.seed);
    let watched = process.clone();
    std::thread::spawn(move || {
        // Ends when the parent closes the pipe.
        let _ = std::io::stdin().read(&mut [0]);
        watched.ended.store(true, SeqCst);
    });
    child_process::send("started");
    let mut tasks = Vec::new();
    for account in ACCOUNTS {
        for _ in 0..if process.task.owners { 1 } else { 2 } {
            let (process, rng) = (process.clone(), rng.fork());
            tasks.push(match process.task.owners {
                true => tokio::spawn(actor::run(process, account, rng)),
                false => tokio::spawn(readers::run(process, account, rng)),
            });
        }
    }
    if process.task.owners {
        // Two owners that share the process and its heartbeat.
        tasks.push(tokio::spawn(actor::run(process.clone(), ACCOUNTS[0], rng.fork())));
        tasks.push(tokio::spawn(actor::run(process.clone(), MACHINE, rng.fork())));
    }
    join_all(tasks).await.into_iter().for_each(|ended| ended.unwrap());
}

pub async fn pause(rng: &mut fastrand::Rng, milliseconds: u64) {
    tokio::time::sleep(Duration::from_micros(rng.u64(0..milliseconds * 1000))).await;
}
