//! Rows by table.

use serde::Serialize;

/// How many rows of each table of an account were deleted, or would be: by
/// [`delete_account`](super::delete_account), [`reset_device`](super::reset_device) or
/// [`prune`](super::prune).
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct DeletedRows {
    /// The account's name.
    pub account: String,
    /// Rows by table. Tables without rows are left out, except by `prune`: it lists those of each rule that
    /// is on.
    pub tables: Vec<TableCount>,
}

/// How many rows of a table something concerns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TableCount {
    /// The table's name.
    pub table: &'static str,
    /// How many rows.
    pub rows: u64,
}

impl DeletedRows {
    pub(super) fn new(account: &str, tables: Vec<TableCount>) -> Self {
        Self { account: account.to_owned(), tables }
    }

    pub(super) fn without_empty(self) -> Self {
        let tables = self.tables.into_iter().filter(|count| count.rows > 0).collect();
        Self { tables, ..self }
    }
}
