//! Circuit breakers: each pauses all rooms of a webhook while it accepts nothing.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::retry::Delays;

/// A breaker opens when this many rooms fail without a success in between.
const THRESHOLD: usize = 4;

/// One breaker per webhook, by its name.
#[derive(Default)]
pub struct Breakers(Mutex<HashMap<String, Breaker>>);

struct Breaker {
    /// The rooms that failed since the last success.
    failing: HashSet<String>,
    delays: Delays,
    open_until: Instant,
}

impl Breakers {
    /// Record a failure of this room. Returns the pause of all rooms if the breaker is open.
    pub fn failed(
        &self,
        webhook: &str,
        room: &str,
        retry_after: Option<Duration>,
        for_all: bool,
    ) -> Option<Duration> {
        let mut breakers = self.lock();
        let breaker = breakers.entry(webhook.to_owned()).or_insert_with(|| Breaker {
            failing: HashSet::new(),
            delays: Delays::new(),
            open_until: Instant::now(),
        });
        breaker.failing.insert(room.to_owned());
        if !for_all && breaker.failing.len() < THRESHOLD {
            return None;
        }
        let delay = breaker.delays.next(retry_after);
        breaker.open_until = Instant::now() + delay;
        Some(delay)
    }

    pub fn succeeded(&self, webhook: &str) {
        self.lock().remove(webhook);
    }

    /// How long the breaker stays open, if it is.
    pub fn pause(&self, webhook: &str) -> Option<Duration> {
        let until = self.lock().get(webhook)?.open_until;
        Some(until.saturating_duration_since(Instant::now())).filter(|delay| !delay.is_zero())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Breaker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failing_room_does_not_open_the_breaker() {
        let breakers = Breakers::default();
        for _ in 0..100 {
            assert_eq!(breakers.failed("", "!r:x", None, false), None);
        }
        assert_eq!(breakers.pause(""), None);
        assert_eq!(breakers.failed("", "!a:x", None, false), None);
        assert_eq!(breakers.failed("", "!b:x", None, false), None);
        assert!(breakers.failed("", "!c:x", None, false).is_some());
        assert!(breakers.pause("").is_some());
        breakers.succeeded("");
        assert_eq!(breakers.pause(""), None);
    }

    #[test]
    fn a_rate_limit_opens_the_breaker_of_its_webhook_only() {
        let breakers = Breakers::default();
        assert!(breakers.failed("instagram", "!r:x", None, true).is_some());
        assert!(breakers.pause("instagram").is_some());
        assert_eq!(breakers.pause(""), None);
    }
}
