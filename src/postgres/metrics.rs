//! Figures for the `metrics` facade, behind the feature of that name. Without it these functions do
//! nothing. `docs/operations.md` documents the names.

#![cfg_attr(not(feature = "metrics"), allow(unused_variables))]

use std::time::{Duration, Instant};

/// A statement was answered, or given up, with its retries.
pub(crate) fn statement(name: &'static str, took: Duration, failed: bool) {
    #[cfg(feature = "metrics")]
    {
        let outcome = if failed { "error" } else { "ok" };
        ::metrics::counter!("matrix_sdk_postgres_statements_total", "statement" => name, "outcome" => outcome)
            .increment(1);
        ::metrics::histogram!("matrix_sdk_postgres_statement_seconds", "statement" => name)
            .record(took);
    }
}

/// A commit, or a statement of the application, was answered or given up.
pub(crate) fn operation(name: &'static str, took: Duration, failed: bool) {
    #[cfg(feature = "metrics")]
    {
        let outcome = if failed { "error" } else { "ok" };
        ::metrics::counter!("matrix_sdk_postgres_operations_total", "operation" => name, "outcome" => outcome)
            .increment(1);
        if name == "COMMIT" {
            ::metrics::histogram!("matrix_sdk_postgres_commit_seconds").record(took);
        }
    }
}

/// The server was asked, and is awaited once.
pub(crate) fn round_trip() {
    #[cfg(feature = "metrics")]
    ::metrics::counter!("matrix_sdk_postgres_round_trips_total").increment(1);
}

/// A failure is about to be retried.
pub(crate) fn retry() {
    #[cfg(feature = "metrics")]
    ::metrics::counter!("matrix_sdk_postgres_retries_total").increment(1);
}

/// The cache was asked for a group of rows, of the index with this name.
pub(crate) fn cache_lookup(index: &'static str, is_hit: bool) {
    #[cfg(feature = "metrics")]
    {
        let result = if is_hit { "hit" } else { "miss" };
        ::metrics::counter!("matrix_sdk_postgres_cache_lookups_total", "index" => index, "result" => result)
            .increment(1);
    }
}

/// A connection was taken from the pool, or could not be.
pub(crate) fn pool_wait(since: Instant, failed: bool) {
    #[cfg(feature = "metrics")]
    {
        ::metrics::histogram!("matrix_sdk_postgres_pool_wait_seconds").record(since.elapsed());
        if failed {
            ::metrics::counter!("matrix_sdk_postgres_pool_failures_total").increment(1);
        }
    }
}

/// An account was `claimed`, `released`, or lost: `superseded`, `rolled_back`.
pub(crate) fn ownership(change: &'static str) {
    #[cfg(feature = "metrics")]
    ::metrics::counter!("matrix_sdk_postgres_ownership_changes_total", "change" => change)
        .increment(1);
}
