//! Backoff: delays before retries.

use std::time::{Duration, SystemTime};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use http::{HeaderMap, header::RETRY_AFTER};

const MIN_DELAY: Duration = Duration::from_secs(1);
/// The end of an outage is noticed within this time.
const MAX_DELAY: Duration = Duration::from_secs(30);
/// Upper limit for a delay that a server requests.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(15 * 60);

/// Exponential backoff from one second up to half a minute, with jitter, without an end.
pub fn policy() -> ExponentialBuilder {
    between(MIN_DELAY, MAX_DELAY)
}

fn between(shortest: Duration, longest: Duration) -> ExponentialBuilder {
    ExponentialBuilder::new()
        .with_min_delay(shortest)
        .with_max_delay(longest / 2)
        .with_jitter()
        .without_max_times()
}

/// An iterator over the delays of [`policy`].
pub struct Delays(ExponentialBackoff);

impl Delays {
    pub fn new() -> Self {
        Self(policy().build())
    }

    /// Growing up to `longest` instead of half a minute.
    pub fn up_to(longest: Duration) -> Self {
        Self::between(MIN_DELAY, longest)
    }

    /// Growing from `shortest` up to `longest`.
    pub fn between(shortest: Duration, longest: Duration) -> Self {
        Self(between(shortest, longest).build())
    }

    /// For refusals that may be temporary: up to a minute.
    pub fn after_refusals() -> Self {
        Self::up_to(Duration::from_secs(60))
    }

    /// The next delay, or the server's `retry_after` if that is longer.
    pub fn next(&mut self, retry_after: Option<Duration>) -> Duration {
        let own = self.0.next().unwrap_or(MAX_DELAY);
        retry_after.map_or(own, |retry_after| own.max(retry_after.min(MAX_RETRY_AFTER)))
    }

    pub fn reset(&mut self) {
        *self = Self::new();
    }
}

/// The `Retry-After` header, in seconds or as a date.
pub fn retry_after_header(headers: &HeaderMap) -> Option<Duration> {
    use ruma::api::error::RetryAfter;
    let value = headers.get(RETRY_AFTER)?;
    if value.len() > 10 && value.as_bytes().iter().all(u8::is_ascii_digit) {
        return Some(MAX_RETRY_AFTER);
    }
    let retry_after = match RetryAfter::try_from(value).ok()? {
        RetryAfter::Delay(delay) => delay,
        RetryAfter::DateTime(time) => {
            time.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO)
        }
    };
    Some(retry_after.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_up_to_a_limit_and_honour_the_server() {
        let mut delays = Delays::new();
        let ten: Vec<_> = (0..10).map(|_| delays.next(None)).collect();
        assert!(ten[0] <= Duration::from_secs(2) && ten[9] >= MAX_DELAY / 2, "{ten:?}");
        assert!(ten.iter().all(|delay| *delay <= MAX_DELAY), "{ten:?}");
        delays.reset();
        assert_eq!(delays.next(Some(Duration::from_secs(100))), Duration::from_secs(100));
        assert_eq!(delays.next(Some(Duration::MAX)), MAX_RETRY_AFTER);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let headers = |value: &str| HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
        assert_eq!(retry_after_header(&headers("7")), Some(Duration::from_secs(7)));
        let past = headers("Wed, 21 Oct 2015 07:28:00 GMT");
        assert_eq!(retry_after_header(&past), Some(Duration::ZERO));
        assert_eq!(retry_after_header(&headers("soon")), None);
        let beyond = headers("18446744073709551616");
        assert_eq!(retry_after_header(&beyond), Some(MAX_RETRY_AFTER));
    }
}
