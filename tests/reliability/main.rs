//! The guarantees of docs/reliability.md when servers, connections and processes fail, on real PostgreSQL servers.
//!
//! The counts are small by default. `scripts/reliability` makes the long run, with
//! `RELIABILITY_LONG=1`, and prints the figures of `docs/reliability.md`. Randomised tests print
//! their seed, and take it from `RELIABILITY_SEED`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod claims;
mod commit;
mod disk_full;
mod dns;
mod failover;
mod heartbeats;
mod kills;
mod leases;
mod one_sync;
mod openers;
mod outbox;
mod outcomes;
mod partition;
mod pgbouncer;
mod random_syncs;
mod reserved_indices;
mod retries;
mod server_errors;
mod split_brain;
mod standby;
