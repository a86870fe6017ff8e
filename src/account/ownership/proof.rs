//! How long ago it was proven that the account is ours.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use super::lock;

/// How long a proof of ownership counts at most, whatever the heartbeat's interval.
const MAX_LIFETIME: Duration = Duration::from_secs(10);

/// When a query was sent. By two clocks: the first stands still while the host is suspended, the
/// second may be set to an earlier time. Both are read before the query is sent, because time that
/// passes later counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    steady: Instant,
    wall: SystemTime,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self { steady: Instant::now(), wall: SystemTime::now() }
    }

    fn is_younger_than(self, age: Duration) -> bool {
        self.steady.elapsed() < age && self.wall.elapsed().is_ok_and(|elapsed| elapsed < age)
    }
}

/// A heartbeat's interval: the shortest one of its owners.
#[derive(Debug)]
pub(crate) struct Interval(AtomicU64);

impl Default for Interval {
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

impl Interval {
    pub(super) fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Acquire))
    }

    /// Returns whether it was longer.
    pub(super) fn shorten(&self, interval: Duration) -> bool {
        let milliseconds = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1);
        self.0.fetch_min(milliseconds, Ordering::AcqRel) > milliseconds
    }
}

/// When the last query was sent whose answer proved that the account is ours.
#[derive(Debug)]
pub(super) struct Proof {
    /// The heartbeat's, by which the account is free for others.
    interval: Arc<Interval>,
    last: Mutex<Option<Moment>>,
}

impl Proof {
    pub(super) fn new(interval: Arc<Interval>) -> Self {
        Self { interval, last: Mutex::default() }
    }

    pub(super) fn record(&self, sent: Moment) {
        let mut last = lock(&self.last);
        if last.is_none_or(|before| before.steady < sent.steady) {
            *last = Some(sent);
        }
    }

    pub(super) fn is_recent(&self) -> bool {
        lock(&self.last).is_some_and(|sent| sent.is_younger_than(self.lifetime()))
    }

    /// A missed heartbeat is no reason for a commit; a long interval is no reason to go without one.
    fn lifetime(&self) -> Duration {
        self.interval.get().saturating_mul(2).min(MAX_LIFETIME)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        time::{Duration, Instant, SystemTime},
    };

    use super::{Interval, MAX_LIFETIME, Moment, Proof};

    const HOUR: Duration = Duration::from_secs(3600);

    /// The moment of a query that was sent before the host was suspended.
    fn before_suspension() -> Moment {
        Moment { steady: Instant::now(), wall: SystemTime::now() - MAX_LIFETIME }
    }

    #[test]
    fn a_suspension_ends_a_proof_even_if_its_answer_comes_later() {
        let interval = Arc::new(Interval::default());
        let proof = Proof::new(interval);
        assert!(!proof.is_recent());
        proof.record(before_suspension());
        assert!(!proof.is_recent());
        proof.record(Moment::now());
        assert!(proof.is_recent());
    }

    #[test]
    fn a_clock_that_was_set_back_ends_a_proof() {
        let proof = Proof::new(Arc::default());
        let wall = SystemTime::now() + HOUR;
        proof.record(Moment { steady: Instant::now(), wall });
        assert!(!proof.is_recent());
    }

    #[test]
    fn a_proof_counts_for_two_of_the_shortest_intervals() {
        let interval = Arc::new(Interval::default());
        let proof = Proof::new(interval.clone());
        assert_eq!(proof.lifetime(), MAX_LIFETIME);
        assert!(interval.shorten(Duration::from_secs(2)));
        assert!(!interval.shorten(Duration::from_secs(3)));
        assert_eq!(proof.lifetime(), Duration::from_secs(4));
        assert!(interval.shorten(Duration::from_secs(1)));
        assert_eq!(proof.lifetime(), Duration::from_secs(2));
    }
}
