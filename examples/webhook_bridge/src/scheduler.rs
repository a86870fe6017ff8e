//! A fair scheduler: runs steps of many keyed jobs with bounded concurrency, round-robin, so that a
//! slow or failing job does not delay others.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{errors::BridgeError, retry::Delays};

/// When the job's next step runs.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// As soon as possible, behind the other ready jobs.
    Requeue,
    /// Not until the job is listed again.
    Done,
    /// The step failed: after a growing delay (backoff), or the server's delay if that is longer.
    Backoff(Option<Duration>),
    /// After this time.
    After(Duration),
    /// After this time, or at the next wakeup.
    AfterOrWakeup(Duration),
}

/// The settings of a scheduler.
pub struct Scheduler<'a> {
    pub stop: &'a CancellationToken,
    /// Notified when there may be new jobs to list.
    pub wakeup: &'a Notify,
    pub concurrency: usize,
    /// The delays of [`Next::Backoff`].
    pub delays: fn() -> Delays,
}

#[derive(Default)]
struct Queue {
    ready: VecDeque<String>,
    running: HashSet<String>,
    /// Listed while running: the running step may not have seen the new work.
    relisted: HashSet<String>,
    /// The end of the delay, and whether a wakeup ends it.
    delayed: HashMap<String, (Instant, bool)>,
    failing: HashMap<String, Delays>,
}

impl Scheduler<'_> {
    /// Run until stopped or until a step returns an error. After a stop, running steps are finished.
    pub async fn run(
        &self,
        list: impl AsyncFn() -> Result<Vec<String>, BridgeError>,
        step: impl AsyncFn(&str) -> Result<Next, BridgeError>,
    ) -> Result<(), BridgeError> {
        let step = &step;
        let mut queue = Queue::default();
        let mut running = FuturesUnordered::new();
        let mut list_jobs = true;
        while !self.stop.is_cancelled() {
            if std::mem::take(&mut list_jobs) {
                queue.enqueue(list().await?);
            }
            while running.len() < self.concurrency
                && let Some(key) = queue.next_job(self.concurrency)
            {
                running.push(async move {
                    let next = step(&key).await;
                    (key, next)
                });
            }
            let expiry = queue.next_expiry();
            tokio::select! {
                Some((key, next)) = running.next() => queue.finished(key, next?, self.delays),
                () = self.wakeup.notified() => list_jobs = true,
                () = sleep_until(expiry.unwrap_or_else(Instant::now)), if expiry.is_some() => {
                    queue.requeue_expired();
                }
                () = self.stop.cancelled() => {}
            }
        }
        while let Some((_, next)) = running.next().await {
            next?;
        }
        Ok(())
    }
}

impl Queue {
    fn enqueue(&mut self, keys: Vec<String>) {
        self.delayed.retain(|_, (_, until_wakeup)| !*until_wakeup);
        let queued: HashSet<String> = self.ready.iter().cloned().collect();
        for key in keys {
            if self.running.contains(&key) {
                self.relisted.insert(key);
            } else if !queued.contains(&key) && !self.delayed.contains_key(&key) {
                self.ready.push_back(key);
            }
        }
    }

    /// The next job to run. Jobs that have not failed come first, and failing ones, which may hang, use at
    /// most half of the slots.
    fn next_job(&mut self, concurrency: usize) -> Option<String> {
        let has_failed = |key: &String| self.failing.contains_key(key);
        let failed = self.running.iter().filter(|key| has_failed(key)).count();
        let at = match self.ready.iter().position(|key| !has_failed(key)) {
            None if failed > 0 && failed >= concurrency / 2 => return None,
            at => at.unwrap_or(0),
        };
        let key = self.ready.remove(at)?;
        self.running.insert(key.clone());
        Some(key)
    }

    fn finished(&mut self, key: String, next: Next, delays: fn() -> Delays) {
        self.running.remove(&key);
        let relisted = self.relisted.remove(&key);
        if !matches!(next, Next::Backoff(_)) {
            self.failing.remove(&key);
        }
        let (pause, until_wakeup) = match next {
            Next::Requeue => return self.ready.push_back(key),
            Next::Done | Next::AfterOrWakeup(_) if relisted => return self.ready.push_back(key),
            Next::Done => return,
            Next::Backoff(retry_after) => {
                let delays = self.failing.entry(key.clone()).or_insert_with(delays);
                (delays.next(retry_after), false)
            }
            Next::After(pause) => (pause, false),
            Next::AfterOrWakeup(pause) => (pause, true),
        };
        self.delayed.insert(key, (Instant::now() + pause, until_wakeup));
    }

    fn next_expiry(&self) -> Option<Instant> {
        self.delayed.values().map(|(until, _)| *until).min()
    }

    fn requeue_expired(&mut self) {
        let now = Instant::now();
        let expired = self.delayed.extract_if(|_, (until, _)| *until <= now);
        self.ready.extend(expired.map(|(key, _)| key));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn a_slow_job_delays_no_other_and_jobs_alternate() {
        let (stop, wakeup) = (CancellationToken::new(), Notify::new());
        let scheduler =
            Scheduler { stop: &stop, wakeup: &wakeup, concurrency: 2, delays: Delays::new };
        let seen = Mutex::new(Vec::new());
        let list = async || Ok(["slow", "a", "b"].map(ToOwned::to_owned).to_vec());
        let step = async |key: &str| {
            if key == "slow" {
                // Ends after all steps of the others.
                stop.cancelled().await;
                return Ok(Next::Done);
            }
            let mut seen = seen.lock().unwrap();
            seen.push(key.to_owned());
            if seen.len() == 6 {
                stop.cancel();
            }
            Ok(Next::Requeue)
        };
        scheduler.run(list, step).await.unwrap();
        assert_eq!(*seen.lock().unwrap(), ["a", "b", "a", "b", "a", "b"]);
    }

    #[tokio::test]
    async fn a_job_listed_while_running_runs_again() {
        let (stop, wakeup) = (CancellationToken::new(), Notify::new());
        let scheduler =
            Scheduler { stop: &stop, wakeup: &wakeup, concurrency: 1, delays: Delays::new };
        let (listed, steps) = (Notify::new(), Mutex::new(0));
        let list = async || {
            listed.notify_one();
            Ok(vec!["a".to_owned()])
        };
        let step = async |_: &str| {
            listed.notified().await;
            *steps.lock().unwrap() += 1;
            if *steps.lock().unwrap() == 1 {
                wakeup.notify_one();
                // The jobs are listed while this step runs.
                listed.notified().await;
                return Ok(Next::Done);
            }
            stop.cancel();
            Ok(Next::Done)
        };
        // The second step must not wait for another listing.
        let step = async |key: &str| {
            if *steps.lock().unwrap() == 1 {
                listed.notify_one();
            }
            step(key).await
        };
        scheduler.run(list, step).await.unwrap();
        assert_eq!(*steps.lock().unwrap(), 2);
    }

    #[test]
    fn failing_jobs_run_last_and_use_half_of_the_slots() {
        let mut queue = Queue::default();
        let listed = |queue: &mut Queue, keys: &[&str]| {
            queue.enqueue(keys.iter().map(ToString::to_string).collect());
        };
        let start = |queue: &mut Queue| queue.next_job(4).unwrap_or_default();
        listed(&mut queue, &["a", "b", "c"]);
        for key in ["a", "b", "c"] {
            assert_eq!(start(&mut queue), key);
            queue.finished(key.to_owned(), Next::Backoff(None), Delays::new);
        }
        // Let all delays expire.
        queue.delayed.clear();
        listed(&mut queue, &["a", "b", "c", "new"]);
        assert_eq!(["new", "a", "b", ""], std::array::from_fn(|_| start(&mut queue)));
        listed(&mut queue, &["newer"]);
        assert_eq!(["newer", ""], std::array::from_fn(|_| start(&mut queue)));
        queue.finished("a".to_owned(), Next::Done, Delays::new);
        assert_eq!(start(&mut queue), "c");
    }

    #[tokio::test]
    async fn an_error_of_a_step_ends_the_scheduler() {
        let (stop, wakeup) = (CancellationToken::new(), Notify::new());
        let scheduler =
            Scheduler { stop: &stop, wakeup: &wakeup, concurrency: 2, delays: Delays::new };
        let list = async || Ok(vec!["a".to_owned()]);
        let ended = scheduler.run(list, async |_| Err(BridgeError::Stopped)).await;
        assert!(matches!(ended, Err(BridgeError::Stopped)));
    }
}
