//! Values, and machines that exchange messages, as the library's own tests have them.
#![allow(unused_imports)]

pub use test_support::{fixture, machine, values};
