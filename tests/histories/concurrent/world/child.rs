//! A process of the workload, which is killed and started again under another name.

use std::time::{Duration, Instant};
use test_support::again::Again;

use crate::concurrent::{
    history::{Journal, Note},
    workload::Task,
};

const TEST: &str = "concurrent::every_answer_fits_one_owner_and_one_order";

pub struct Child {
    /// Its process's name is that of the place, and the number of the life.
    task: Task,
    lives: usize,
    running: Again,
}

impl Child {
    pub fn start(task: Task) -> Self {
        Self { running: Self::run(&task, 0), task, lives: 0 }
    }

    fn name(task: &Task, life: usize) -> String {
        format!("{}.{life}", task.process)
    }

    fn run(task: &Task, life: usize) -> Again {
        let process = Self::name(task, life);
        let task = Task { process, ..task.clone() };
        Again::start(TEST, &serde_json::to_string(&task).unwrap())
    }

    pub fn pid(&self) -> u32 {
        self.running.child.id()
    }

    fn has_died(&self, journal: &Journal) {
        let gone = Self::name(&self.task, self.lives);
        journal.note("", Note::Died { gone });
    }

    pub fn kill_and_start(&mut self, journal: &Journal, rng: &mut fastrand::Rng) {
        let died = self.running.child.try_wait().unwrap();
        assert_eq!(died, None, "a process of the workload ended by itself");
        self.running.child.kill().unwrap();
        self.running.child.wait().unwrap();
        self.has_died(journal);
        self.lives += 1;
        self.task.seed = rng.u64(..);
        self.running = Self::run(&self.task, self.lives);
    }

    /// Tells it to end, and does not wait.
    pub fn order_end(&mut self) {
        drop(self.running.child.stdin.take());
    }

    pub fn end(&mut self, journal: &Journal) {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(20) {
            if let Some(status) = self.running.child.try_wait().unwrap() {
                assert!(status.success(), "a process of the workload failed: {status}");
                return self.has_died(journal);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // A late one is no fault: it may wait for all its limits, one after the other.
        self.running.child.kill().unwrap();
        self.running.child.wait().unwrap();
        self.has_died(journal);
    }
}
