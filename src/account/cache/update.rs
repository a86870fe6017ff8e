//! What a write does to the cache.

use super::CacheKey;
use crate::postgres::{
    cell::Cells,
    statement::{CacheIndex, Table},
};

/// A change of what is cached.
#[derive(Clone, Debug)]
pub(crate) enum CacheUpdate {
    /// Inserts or replaces a row of the group, by its key within the group.
    UpsertRow(CacheKey, Cells, Cells),
    /// Removes the row with this key from the group.
    DeleteRow(CacheKey, Cells),
    /// Replaces all rows of the group with this one.
    ReplaceGroup(CacheKey, Cells, Cells),
    /// The group has rows, which must be read from the database.
    InvalidateGroup(CacheKey),
    /// All rows of an index must be read from the database; no key was added.
    InvalidateTable(&'static CacheIndex),
}

impl CacheUpdate {
    /// The cache update of an upsert of a whole row; `None` if its table is not cached.
    pub(crate) fn of_upsert(table: &'static Table, key: &Cells, row: &Cells) -> Option<Self> {
        let (group, rest) = CacheKey::of_row(table.cache?, key);
        Some(match group.index {
            CacheIndex { keeps_rows: false, .. } => Self::InvalidateGroup(group),
            _ if rest.is_empty() => Self::ReplaceGroup(group, rest, row.clone()),
            _ => Self::UpsertRow(group, rest, row.clone()),
        })
    }

    /// The cache update of the deletion of a row; `None` if its table is not cached.
    pub(crate) fn of_delete(table: &'static Table, key: &Cells) -> Option<Self> {
        let (group, rest) = CacheKey::of_row(table.cache?, key);
        Some(match group.index {
            CacheIndex { keeps_rows: false, .. } => Self::InvalidateGroup(group),
            _ => Self::DeleteRow(group, rest),
        })
    }
}
