//! `export-keys`: has no arguments and no entry in `Command` yet.
