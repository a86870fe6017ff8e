//! What a write does to the cache.

use super::CacheKey;
use crate::postgres::{
    cell::Cells,
    statement::{CacheIndex, Table},
};

/// A change of what is cached.
#[derive(Clone, Debug)]
pub(crate) enum CacheUpdate {
    /// The group has this row, by its key within the group, beside its others.
    UpsertRow(CacheKey, Cells, Cells),
    /// The group no longer has the row with this key.
    DeleteRow(CacheKey, Cells),
    /// The group has this row and no other.
    ReplaceGroup(CacheKey, Cells, Cells),
    /// The group has rows, but only the database knows which.
    InvalidateGroup(CacheKey),
    /// Only the database knows what the rows of an index are; none has come that was not there.
    InvalidateTable(&'static CacheIndex),
}

impl CacheUpdate {
    /// What an upsert of a whole row means to the cache.
    pub(crate) fn of_upsert(table: &'static Table, key: &Cells, row: &Cells) -> Option<Self> {
        let (group, rest) = CacheKey::of_row(table.cache?, key);
        Some(match group.index {
            CacheIndex { keeps_rows: false, .. } => Self::InvalidateGroup(group),
            _ if rest.is_empty() => Self::ReplaceGroup(group, rest, row.clone()),
            _ => Self::UpsertRow(group, rest, row.clone()),
        })
    }

    /// What the deletion of a row means to the cache.
    pub(crate) fn of_delete(table: &'static Table, key: &Cells) -> Option<Self> {
        let (group, rest) = CacheKey::of_row(table.cache?, key);
        Some(match group.index {
            CacheIndex { keeps_rows: false, .. } => Self::InvalidateGroup(group),
            _ => Self::DeleteRow(group, rest),
        })
    }
}
