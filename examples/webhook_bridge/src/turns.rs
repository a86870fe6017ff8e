//! Work on many things, each by itself: several at once, in turn, so that a slow one holds up no
//! other.

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

/// What follows a step.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// There may be more: behind the others.
    Again,
    /// Nothing, until it is listed again.
    Done,
    /// It failed: after a pause that grows from failure to failure, or what the server wishes.
    Later(Option<Duration>),
    /// After this time.
    After(Duration),
    /// After this time, or with the next news.
    News(Duration),
}

/// How the turns are taken.
pub struct Turns<'a> {
    pub stop: &'a CancellationToken,
    /// Something new may be listed.
    pub news: &'a Notify,
    pub at_once: usize,
    /// The pauses of [`Next::Later`].
    pub delays: fn() -> Delays,
}

#[derive(Default)]
struct Queue {
    ready: VecDeque<String>,
    running: HashSet<String>,
    /// Listed while they were running: what is new may have come behind their back.
    missed: HashSet<String>,
    /// Until when, and whether news end it.
    resting: HashMap<String, (Instant, bool)>,
    failing: HashMap<String, Delays>,
}

impl Turns<'_> {
    /// Until stopped, or a step fails; steps that run are finished first after a stop.
    pub async fn run(
        &self,
        list: impl AsyncFn() -> Result<Vec<String>, BridgeError>,
        step: impl AsyncFn(&str) -> Result<Next, BridgeError>,
    ) -> Result<(), BridgeError> {
        let step = &step;
        let mut queue = Queue::default();
        let mut running = FuturesUnordered::new();
        let mut news = true;
        while !self.stop.is_cancelled() {
            if std::mem::take(&mut news) {
                queue.listed(list().await?);
            }
            while running.len() < self.at_once
                && let Some(key) = queue.start(self.at_once)
            {
                running.push(async move {
                    let next = step(&key).await;
                    (key, next)
                });
            }
            let rested = queue.next_rested();
            tokio::select! {
                Some((key, next)) = running.next() => queue.finished(key, next?, self.delays),
                () = self.news.notified() => news = true,
                () = sleep_until(rested.unwrap_or_else(Instant::now)), if rested.is_some() => {
                    queue.wake_rested();
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
    fn listed(&mut self, keys: Vec<String>) {
        self.resting.retain(|_, (_, until_news)| !*until_news);
        let queued: HashSet<String> = self.ready.iter().cloned().collect();
        for key in keys {
            if self.running.contains(&key) {
                self.missed.insert(key);
            } else if !queued.contains(&key) && !self.resting.contains_key(&key) {
                self.ready.push_back(key);
            }
        }
    }

    /// What has not failed goes before what has, for which half of the places are enough: it may hang.
    fn start(&mut self, at_once: usize) -> Option<String> {
        let has_failed = |key: &String| self.failing.contains_key(key);
        let failed = self.running.iter().filter(|key| has_failed(key)).count();
        let at = match self.ready.iter().position(|key| !has_failed(key)) {
            None if failed > 0 && failed >= at_once / 2 => return None,
            at => at.unwrap_or(0),
        };
        let key = self.ready.remove(at)?;
        self.running.insert(key.clone());
        Some(key)
    }

    fn finished(&mut self, key: String, next: Next, delays: fn() -> Delays) {
        self.running.remove(&key);
        let missed = self.missed.remove(&key);
        if !matches!(next, Next::Later(_)) {
            self.failing.remove(&key);
        }
        let (pause, until_news) = match next {
            Next::Again => return self.ready.push_back(key),
            Next::Done | Next::News(_) if missed => return self.ready.push_back(key),
            Next::Done => return,
            Next::Later(wish) => {
                let delays = self.failing.entry(key.clone()).or_insert_with(delays);
                (delays.next(wish), false)
            }
            Next::After(pause) => (pause, false),
            Next::News(pause) => (pause, true),
        };
        self.resting.insert(key, (Instant::now() + pause, until_news));
    }

    fn next_rested(&self) -> Option<Instant> {
        self.resting.values().map(|(until, _)| *until).min()
    }

    fn wake_rested(&mut self) {
        let now = Instant::now();
        let rested = self.resting.extract_if(|_, (until, _)| *until <= now);
        self.ready.extend(rested.map(|(key, _)| key));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn a_slow_one_holds_up_no_other_and_turns_alternate() {
        let (stop, news) = (CancellationToken::new(), Notify::new());
        let turns = Turns { stop: &stop, news: &news, at_once: 2, delays: Delays::new };
        let seen = Mutex::new(Vec::new());
        let list = async || Ok(["slow", "a", "b"].map(ToOwned::to_owned).to_vec());
        let step = async |key: &str| {
            if key == "slow" {
                // Ends when all others have had their turns.
                stop.cancelled().await;
                return Ok(Next::Done);
            }
            let mut seen = seen.lock().unwrap();
            seen.push(key.to_owned());
            if seen.len() == 6 {
                stop.cancel();
            }
            Ok(Next::Again)
        };
        turns.run(list, step).await.unwrap();
        assert_eq!(*seen.lock().unwrap(), ["a", "b", "a", "b", "a", "b"]);
    }

    #[tokio::test]
    async fn what_is_listed_while_it_runs_runs_again() {
        let (stop, news) = (CancellationToken::new(), Notify::new());
        let turns = Turns { stop: &stop, news: &news, at_once: 1, delays: Delays::new };
        let (listed, steps) = (Notify::new(), Mutex::new(0));
        let list = async || {
            listed.notify_one();
            Ok(vec!["a".to_owned()])
        };
        let step = async |_: &str| {
            listed.notified().await;
            *steps.lock().unwrap() += 1;
            if *steps.lock().unwrap() == 1 {
                news.notify_one();
                // The list is asked for meanwhile.
                listed.notified().await;
                return Ok(Next::Done);
            }
            stop.cancel();
            Ok(Next::Done)
        };
        // The second step needs a listing of its own to begin with.
        let step = async |key: &str| {
            if *steps.lock().unwrap() == 1 {
                listed.notify_one();
            }
            step(key).await
        };
        turns.run(list, step).await.unwrap();
        assert_eq!(*steps.lock().unwrap(), 2);
    }

    #[test]
    fn what_failed_before_leaves_places_and_comes_last() {
        let mut queue = Queue::default();
        let listed = |queue: &mut Queue, keys: &[&str]| {
            queue.listed(keys.iter().map(ToString::to_string).collect());
        };
        let start = |queue: &mut Queue| queue.start(4).unwrap_or_default();
        listed(&mut queue, &["a", "b", "c"]);
        for key in ["a", "b", "c"] {
            assert_eq!(start(&mut queue), key);
            queue.finished(key.to_owned(), Next::Later(None), Delays::new);
        }
        // All have rested.
        queue.resting.clear();
        listed(&mut queue, &["a", "b", "c", "new"]);
        assert_eq!(["new", "a", "b", ""], std::array::from_fn(|_| start(&mut queue)));
        listed(&mut queue, &["newer"]);
        assert_eq!(["newer", ""], std::array::from_fn(|_| start(&mut queue)));
        queue.finished("a".to_owned(), Next::Done, Delays::new);
        assert_eq!(start(&mut queue), "c");
    }

    #[tokio::test]
    async fn the_error_of_a_step_ends_all() {
        let (stop, news) = (CancellationToken::new(), Notify::new());
        let turns = Turns { stop: &stop, news: &news, at_once: 2, delays: Delays::new };
        let list = async || Ok(vec!["a".to_owned()]);
        let ended = turns.run(list, async |_| Err(BridgeError::Stopped)).await;
        assert!(matches!(ended, Err(BridgeError::Stopped)));
    }
}
