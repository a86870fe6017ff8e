//! The bridge as a process, between a homeserver and a webhook that are made for tests. Where a time
//! matters, order is looked at and not the clock: what is held back waits at a latch.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod devices;
mod evidence;
mod gaps;
mod joins;
mod messages;
mod operator;
mod reading;
mod refusals;
mod restored;
mod settings;
mod slow;
mod stopping;
mod support;
