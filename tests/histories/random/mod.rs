//! Rule 28: stateful property testing. Random histories of calls, reopenings, failures and takeovers; after
//! each step the store must return what a model returns.
//!
//! A failure prints its seed and the shortest history found. `HISTORY_SEED=…` replays one, and
//! `HISTORIES=20000` draws more of them.

mod all_reads;
mod deferral;
mod environment;
mod fixtures;
mod harness;
mod leases;
mod matrix;
mod model;
mod proxy;
mod reads;
mod results;
mod runner;
mod scope;
mod steps;
mod strategies;
mod takeover;
mod values;
mod writes;

#[test]
fn a_store_returns_what_the_model_returns() {
    runner::run();
}
