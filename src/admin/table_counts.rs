//! Rows by table.

use serde::Serialize;

/// How many rows of a table something concerns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TableCount {
    /// The table's name.
    pub table: &'static str,
    /// How many rows.
    pub rows: u64,
}

impl TableCount {
    pub(super) fn without_empty(counts: Vec<Self>) -> Vec<Self> {
        counts.into_iter().filter(|count| count.rows > 0).collect()
    }
}
