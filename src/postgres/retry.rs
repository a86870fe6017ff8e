//! The one retry policy.
//!
//! The limit counts from the first failure: until it has passed, new attempts start, with growing
//! pauses between them. The first attempt has a time limit of its own and does not count, so that
//! one which fails late is retried as well.

use std::{fmt::Display, future::Future, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::{Instant, sleep};
use tracing::debug;

use crate::postgres::metrics;

const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long after the first failure new attempts start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retry(Duration);

impl Retry {
    pub(crate) fn new(limit: Duration) -> Self {
        Self(limit)
    }

    /// Repeats `attempt` as long as its failures are retryable and the limit has not passed.
    pub(crate) async fn run<T, E: Display, F: Future<Output = Result<T, E>>>(
        self,
        what: &str,
        is_retryable: impl Fn(&E) -> bool,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, E> {
        let mut attempts = self.attempts();
        loop {
            match attempt().await {
                Err(error) if is_retryable(&error) => {
                    if !attempts.pause(what, &error).await {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }

    /// For a caller whose attempts differ from each other.
    pub(crate) fn attempts(self) -> Attempts {
        let pauses = ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(SHORTEST_PAUSE)
            .with_max_delay(LONGEST_PAUSE)
            .without_max_times();
        Attempts { limit: self.0, pauses: pauses.build(), first_failure: None }
    }
}

pub(crate) struct Attempts {
    limit: Duration,
    pauses: ExponentialBackoff,
    first_failure: Option<Instant>,
}

impl Attempts {
    /// After a failure, pauses before the next attempt; `false` when the limit has passed.
    pub(crate) async fn pause(&mut self, what: &str, error: &impl Display) -> bool {
        let first_failure = *self.first_failure.get_or_insert_with(Instant::now);
        let left = self.limit.saturating_sub(first_failure.elapsed());
        match self.pauses.next() {
            Some(pause) if !left.is_zero() => {
                debug!(what, %error, ?pause, "retrying");
                metrics::retry();
                sleep(pause.min(left)).await;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Retry;

    const LIMIT: Duration = Duration::from_millis(30);

    /// The first attempt may take longer than the limit.
    #[tokio::test]
    async fn an_attempt_that_fails_late_is_repeated() {
        let mut attempts = 0;
        let result = Retry::new(LIMIT).run(
            "test",
            |_: &&str| true,
            || {
                attempts += 1;
                let is_first = attempts == 1;
                async move {
                    if is_first {
                        tokio::time::sleep(2 * LIMIT).await;
                        return Err("late");
                    }
                    Ok(())
                }
            },
        );
        assert_eq!(result.await, Ok(()));
        assert_eq!(attempts, 2);
    }

    #[tokio::test]
    async fn attempts_end_with_the_limit_or_with_an_error_that_stays() {
        let mut attempts = 0;
        let result = Retry::new(LIMIT).run(
            "test",
            |error: &&str| *error == "passes",
            || {
                attempts += 1;
                std::future::ready(Err::<(), _>("passes"))
            },
        );
        assert_eq!(result.await, Err("passes"));
        assert!(attempts > 1, "{attempts}");

        let mut attempts = 0;
        let result = Retry::new(LIMIT).run(
            "test",
            |error: &&str| *error == "passes",
            || {
                attempts += 1;
                std::future::ready(Err::<(), _>("stays"))
            },
        );
        assert_eq!(result.await, Err("stays"));
        assert_eq!(attempts, 1);
    }
}
