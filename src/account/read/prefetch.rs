//! Reads ahead: the groups that are likely to be read next, or a whole table of few rows, are fetched together with
//! the group that is asked for.

use std::{collections::HashMap, sync::Arc};

use tokio_postgres::Row;

use crate::{
    Error,
    account::{
        StoreLane,
        cache::{Ahead, CacheKey, CacheMiss, Rows},
    },
    postgres::{cell::Cells, statement::CacheIndex},
};

impl StoreLane {
    /// Announces groups that are likely to be read next: of an index that keeps no rows with
    /// [`Self::prefetched`] and then [`Self::query_unless_absent`]. Without effect if the cache is
    /// disabled.
    pub(crate) fn expect(
        &self,
        index: &'static CacheIndex,
        keys: impl IntoIterator<Item = impl Into<Cells>>,
    ) {
        self.lane.cache.expect(keys.into_iter().map(|key| CacheKey::new(index, key)));
    }

    /// The rows of a group that were fetched with another one's; the next reader of the group gets
    /// `None`, and queries it.
    pub(crate) fn prefetched(
        &self,
        index: &'static CacheIndex,
        key: impl Into<Cells>,
    ) -> Result<Option<Arc<Rows>>, Error> {
        self.lane.check()?;
        if self.overlay()?.is_some_and(|scope| scope.changes(index.group)) {
            return Ok(None);
        }
        Ok(self.lane.cache.take_prefetched(&CacheKey::new(index, key)))
    }
}

/// Keeps the rows that were fetched with the group of the miss; none if one has a column of an
/// unexpected type, which the read of that row reports.
pub(super) fn fill(miss: &CacheMiss, rows: &[Row]) {
    let index = miss.key.index;
    let mut groups: HashMap<CacheKey, Rows> = match &miss.plan.prefetch {
        Ahead::Groups(groups) => groups.iter().map(|key| (key.clone(), Rows::new())).collect(),
        Ahead::Table { .. } => HashMap::new(),
    };
    let group_width = index.table.key.len().saturating_sub(index.row_key);
    for row in rows {
        let Ok(cells) = Cells::of(row, index.table.name) else { return };
        let (group, row) = cells.split_at(group_width);
        let (row_key, row) = row.split_at(index.row_key);
        groups.entry(CacheKey::new(index, group)).or_default().insert(row_key, row);
    }
    miss.fill_prefetched(groups.into_iter().map(|(key, rows)| (key, Arc::new(rows))).collect());
}
