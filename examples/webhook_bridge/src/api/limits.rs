//! Limits the rate of requests.

use std::{num::NonZeroU32, time::Duration};

use governor::{
    DefaultDirectRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};

pub struct Limits {
    permitted: DefaultDirectRateLimiter,
    refused: DefaultDirectRateLimiter,
}

impl Limits {
    /// `rate` is the number of requests per second, and the size of a burst.
    pub fn new(rate: NonZeroU32) -> Self {
        let limiter = || RateLimiter::direct(Quota::per_second(rate));
        Self { permitted: limiter(), refused: limiter() }
    }

    /// Count a request. The error is the time until the next one.
    pub fn check(&self, permitted: bool) -> Result<(), Duration> {
        let limiter = if permitted { &self.permitted } else { &self.refused };
        limiter.check().map_err(|not_until| not_until.wait_time_from(DefaultClock::default().now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_requests_do_not_use_up_the_limit_of_permitted_ones() {
        let limits = Limits::new(NonZeroU32::new(2).unwrap());
        let refused: Vec<_> = (0..100).map(|_| limits.check(false)).collect();
        assert!(refused[..2].iter().all(Result::is_ok));
        assert!(refused.iter().any(Result::is_err));
        assert!(limits.check(true).is_ok());
    }
}
