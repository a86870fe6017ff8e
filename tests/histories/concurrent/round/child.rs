//! A process of the workload, which is killed and restarted under another name.

use std::time::{Duration, Instant};
use test_support::child_process::ChildProcess;

use crate::concurrent::{
    history::{Journal, Note},
    workload::Task,
};

const TEST: &str = "concurrent::concurrent_histories_are_linearizable_with_one_owner_at_a_time";

pub struct Child {
    /// Its `process` is a prefix: the process's name ends with the number of restarts.
    task: Task,
    restarts: usize,
    running: ChildProcess,
}

impl Child {
    pub fn start(task: Task) -> Self {
        Self { running: Self::run(&task, 0), task, restarts: 0 }
    }

    fn name(task: &Task, restart: usize) -> String {
        format!("{}.{restart}", task.process)
    }

    fn run(task: &Task, restart: usize) -> ChildProcess {
        let process = Self::name(task, restart);
        let task = Task { process, ..task.clone() };
        ChildProcess::start(TEST, &serde_json::to_string(&task).unwrap())
    }

    pub fn pid(&self) -> u32 {
        self.running.child.id()
    }

    fn note_death(&self, journal: &Journal) {
        let gone = Self::name(&self.task, self.restarts);
        journal.note("", Note::Died { gone });
    }

    pub fn kill_and_start(&mut self, journal: &Journal, rng: &mut fastrand::Rng) {
        let died = self.running.child.try_wait().unwrap();
        assert_eq!(died, None, "a process of the workload ended by itself");
        self.running.child.kill().unwrap();
        self.running.child.wait().unwrap();
        self.note_death(journal);
        self.restarts += 1;
        self.task.seed = rng.u64(..);
        self.running = Self::run(&self.task, self.restarts);
    }

    /// Requests the process to end, without waiting for it.
    pub fn request_end(&mut self) {
        drop(self.running.child.stdin.take());
    }

    pub fn end(&mut self, journal: &Journal) {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(20) {
            if let Some(status) = self.running.child.try_wait().unwrap() {
                assert!(status.success(), "a process of the workload failed: {status}");
                return self.note_death(journal);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // A late end is not a failure: the process may wait for all its time limits, one after another.
        self.running.child.kill().unwrap();
        self.running.child.wait().unwrap();
        self.note_death(journal);
    }
}
