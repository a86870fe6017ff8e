//! Deferred saves: a crash in the middle of a sync loses no key, because the saves of a sync that are harmful
//! alone are stored with the sync's own save. Real `OlmMachine`s, interrupted at any poll.
//!
//! The counts are small by default; `RELIABILITY_LONG=1` tries every poll. Randomised tests print their
//! seed, and take it from `RELIABILITY_SEED`.

mod cuts;
mod failures;
mod fixture;
mod interrupted_sync;
mod ratchets;
mod rules;
mod sync_replay;
