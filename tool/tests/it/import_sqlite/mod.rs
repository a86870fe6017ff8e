//! `import sqlite`.

mod bad_files;
mod everything;
pub mod files;
mod interrupted;
mod seen;
mod versions;
mod writer;
