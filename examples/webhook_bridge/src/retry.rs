//! How long to wait before something is tried again.

use std::time::{Duration, SystemTime};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use http::{HeaderMap, header::RETRY_AFTER};

/// An outage's end is noticed within this time.
const LONGEST: Duration = Duration::from_secs(30);
/// No server's wish makes us wait longer than this between two attempts.
pub const LONGEST_WISH: Duration = Duration::from_secs(15 * 60);

/// From one second up to half a minute, for ever, spread out by adding up to as much again.
pub fn policy() -> ExponentialBuilder {
    up_to(LONGEST)
}

fn up_to(longest: Duration) -> ExponentialBuilder {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_secs(1))
        .with_max_delay(longest / 2)
        .with_jitter()
        .without_max_times()
}

/// The delays of [`policy`], one after the other, beginning anew after a success.
pub struct Delays(ExponentialBackoff);

impl Delays {
    pub fn new() -> Self {
        Self(policy().build())
    }

    /// Growing up to `longest` instead of half a minute.
    pub fn up_to(longest: Duration) -> Self {
        Self(up_to(longest).build())
    }

    /// For what is refused, and may be granted later.
    pub fn after_refusals() -> Self {
        Self::up_to(Duration::from_secs(60))
    }

    /// The next delay, or what the server asked for if that is longer.
    pub fn next(&mut self, wish: Option<Duration>) -> Duration {
        let own = self.0.next().unwrap_or(LONGEST);
        wish.map_or(own, |wish| own.max(wish.min(LONGEST_WISH)))
    }

    pub fn reset(&mut self) {
        *self = Self::new();
    }
}

/// The `Retry-After` header, in seconds or as a date.
pub fn wish_of(headers: &HeaderMap) -> Option<Duration> {
    use ruma::api::error::RetryAfter;
    let wish = match RetryAfter::try_from(headers.get(RETRY_AFTER)?).ok()? {
        RetryAfter::Delay(delay) => delay,
        RetryAfter::DateTime(time) => {
            time.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO)
        }
    };
    Some(wish.min(LONGEST_WISH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_up_to_a_limit_and_honour_the_server() {
        let mut delays = Delays::new();
        let ten: Vec<_> = (0..10).map(|_| delays.next(None)).collect();
        assert!(ten[0] <= Duration::from_secs(2) && ten[9] >= LONGEST / 2, "{ten:?}");
        assert!(ten.iter().all(|delay| *delay <= LONGEST), "{ten:?}");
        delays.reset();
        assert_eq!(delays.next(Some(Duration::from_secs(100))), Duration::from_secs(100));
        assert_eq!(delays.next(Some(Duration::MAX)), LONGEST_WISH);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let headers = |value: &str| HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
        assert_eq!(wish_of(&headers("7")), Some(Duration::from_secs(7)));
        let past = headers("Wed, 21 Oct 2015 07:28:00 GMT");
        assert_eq!(wish_of(&past), Some(Duration::ZERO));
        assert_eq!(wish_of(&headers("soon")), None);
    }
}
