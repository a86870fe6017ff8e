#![doc = include_str!("../README.md")]

mod error;
mod secret;

pub use error::{DatabaseError, Error, OpenStoreError};
