//! What operators do, as a library. `tool/tests` runs the command that calls it.

mod health;
mod key_provider;
mod pruned_suite;
mod queries;
