//! A crash in the middle of a sync loses no key: the saves of a sync that are harmful alone go with the
//! sync's own save. Real `OlmMachine`s, cut anywhere.
//!
//! The counts are small by default; `RELIABILITY_LONG=1` makes them whole. Randomised tests print their
//! seed, and take it from `RELIABILITY_SEED`.

mod bench;
mod contact;
mod cuts;
mod failures;
mod ratchets;
mod rules;
mod torn;
