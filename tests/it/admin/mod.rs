//! What operators do, as a library. `tool/tests` runs the command that calls it.

mod device;
mod health;
mod key_provider;
mod metrics;
mod pruned_suite;
mod queries;
