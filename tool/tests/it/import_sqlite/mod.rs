//! `import sqlite`.

mod bad_files;
mod everything;
mod files;
mod interrupted;
mod versions;
mod writer;
