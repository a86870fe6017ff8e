//! Rule 28: random histories of calls, reopenings, failures and takeovers: the store must answer as a model
//! does, step by step.
//!
//! A failure prints its seed and the shortest history found. `HISTORY_SEED=…` replays one, and
//! `HISTORIES=20000` draws more of them.

mod answers;
mod asking;
mod deferral;
mod everything;
mod leases;
mod matrix;
mod model;
mod place;
mod proxy;
mod running;
mod saving;
mod scope;
mod steps;
mod strategies;
mod takeover;
mod universe;
mod values;
mod world;

#[test]
fn a_store_answers_as_the_model_does() {
    running::run();
}
