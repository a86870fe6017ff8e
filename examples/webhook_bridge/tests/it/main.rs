//! Runs the bridge as a process between a mock homeserver and a mock webhook. Tests control order with
//! latches instead of measuring time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api;
mod asked_keys;
mod backup;
mod cross_signing;
mod dead_letters;
mod devices;
mod documents;
mod endpoints;
mod gaps;
mod ghosts;
mod integrity;
mod joins;
mod labels;
mod late_keys;
mod malformed;
mod messages;
mod metrics;
mod operator;
mod refusals;
mod restored;
mod secret_storage;
mod settings;
mod slow;
mod stopping;
mod support;
mod tokens;
