//! Reads: from the cache where an exclusive owner has one, otherwise with one statement.
//!
//! While a scope holds the lane, reads see its saves. Rows that it has changed, and that its
//! overlay does not have, are read on its connection. So are rows for which the pool has no idle
//! connection, because the scope's own caller may wait for the reader. All other rows are read
//! outside of the scope, so that only committed rows fill the cache.

mod prefetch;
mod route;

use std::sync::Arc;

use tokio_postgres::Row;
use tracing::debug;

use super::StoreLane;
use crate::{
    Error,
    account::{
        cache::{Ahead, CacheKey, CacheMiss, Lookup, Overlaid, Rows},
        cipher::column,
        write::atomically::Scope,
    },
    postgres::{
        cell::Cells,
        database::{Database, Param},
        statement::{CacheIndex, Sql},
    },
};

/// Statements that are sent together, with their parameters.
type Queries<'a> = Vec<(&'static Sql, Vec<Param<'a>>)>;

/// Their rows, and whether these are certainly committed.
type Fetched = (Vec<Vec<Row>>, bool);

/// The result of looking a group up without a query.
enum CachedGroup {
    Rows(Arc<Rows>),
    /// The scope has changed it; with the overlay's count of changes.
    Changed(Arc<Scope>, u64),
    Miss(CacheMiss),
    /// The cache is disabled.
    Uncached,
}

impl StoreLane {
    /// Reads rows with one statement, whose `$1` is the account.
    pub(crate) async fn query(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        self.lane.check()?;
        let params = self.with_id(params);
        self.fail_on_error(self.query_routed(sql, params).await)
    }

    /// Reads one row or none.
    pub(crate) async fn query_opt(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
    ) -> Result<Option<Row>, Error> {
        Ok(self.query(sql, params).await?.pop())
    }

    /// Reads many rows, each decoded as it arrives.
    pub(crate) async fn read_all<T>(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
        decode: impl Fn(&Row) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        self.lane.check()?;
        let params = self.with_id(params);
        let queries = vec![(sql, params.clone())];
        let outside = |database: Database| {
            let (params, decode) = (&params, &decode);
            async move { database.read_all(sql, params, decode).await }
        };
        // Not decoded row by row on the scope's connection, because no row may be left unread
        // there.
        let within = |_: &Scope, rows: Vec<Vec<Row>>| rows.iter().flatten().map(&decode).collect();
        self.fail_on_error(self.route(&queries, true, outside, within).await)
    }

    /// Reads the rows of a group.
    pub(crate) async fn rows(
        &self,
        index: &'static CacheIndex,
        key: impl Into<Cells>,
    ) -> Result<Arc<Rows>, Error> {
        let group = CacheKey::new(index, key);
        loop {
            let found = match self.look_up(&group)? {
                CachedGroup::Rows(rows) => return Ok(rows),
                CachedGroup::Miss(miss) => return self.fetch(&miss).await,
                CachedGroup::Uncached => self.query(index.group, &params(&group.cells)).await?,
                CachedGroup::Changed(scope, seen) => {
                    let queries = vec![(index.group, self.with_id(&params(&group.cells)))];
                    let found = self.fail_on_error(self.query_within(&scope, &queries).await)?;
                    let Some(mut found) = found else { continue };
                    let rows = Arc::new(parse(index, &found.pop().unwrap_or_default())?);
                    if let Some(overlay) = scope.overlay(&self.lane) {
                        overlay.fill(&group, seen, rows.clone());
                    }
                    return Ok(rows);
                }
            };
            return Ok(Arc::new(parse(index, &found)?));
        }
    }

    /// Reads one row by its whole key: with its group, or with a statement of its own if the group
    /// is not cached or is being read already.
    pub(crate) async fn row(
        &self,
        index: &'static CacheIndex,
        key: impl Into<Cells>,
    ) -> Result<Option<Cells>, Error> {
        let key = key.into();
        let (group, row_key) = CacheKey::of_row(index, &key);
        let Some(sql) = index.row else {
            return Ok(self.rows(index, group.cells).await?.get(&row_key).cloned());
        };
        let found = match self.look_up(&group)? {
            CachedGroup::Rows(rows) => return Ok(rows.get(&row_key).cloned()),
            CachedGroup::Miss(miss) if !miss.plan.is_busy => {
                return Ok(self.fetch(&miss).await?.get(&row_key).cloned());
            }
            CachedGroup::Miss(miss) => self.load(&miss, Some((sql, &params(&key)))).await?.0,
            CachedGroup::Changed(..) | CachedGroup::Uncached => {
                self.query(sql, &params(&key)).await?
            }
        };
        found.first().map(|row| Cells::of(row, index.table.name)).transpose()
    }

    /// Reads rows of a group with its statement, whose further parameters are `others`, unless the
    /// group is known to have none.
    pub(crate) async fn query_unless_absent(
        &self,
        index: &'static CacheIndex,
        key: impl Into<Cells>,
        others: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        let group = CacheKey::new(index, key);
        let params = [&params(&group.cells), others].concat();
        match self.look_up(&group)? {
            CachedGroup::Rows(rows) if rows.is_empty() => return Ok(Vec::new()),
            CachedGroup::Miss(miss) => match self.overlay()? {
                // The scope has changed not the group, but another table that the statement reads.
                Some(scope) if scope.changes(index.group) => {
                    self.load(&miss, None).await?;
                    if self.lane.cache.peek(&group).is_some_and(|rows| rows.is_empty()) {
                        return Ok(Vec::new());
                    }
                }
                _ => return Ok(self.load(&miss, Some((index.group, &params))).await?.0),
            },
            _ => {}
        }
        self.query(index.group, &params).await
    }

    fn look_up(&self, group: &CacheKey) -> Result<CachedGroup, Error> {
        self.lane.check()?;
        if let Some(scope) = self.overlay()?
            && let Some(overlaid) =
                scope.overlay(&self.lane).and_then(|overlay| overlay.look_up(group))
        {
            return Ok(match overlaid {
                Overlaid::Known(rows) => CachedGroup::Rows(rows),
                Overlaid::Unknown(seen) => CachedGroup::Changed(scope, seen),
            });
        }
        Ok(match self.lane.cache.look_up(group) {
            Some(Lookup::Hit(rows)) => CachedGroup::Rows(rows),
            Some(Lookup::Miss(miss)) => CachedGroup::Miss(miss),
            None => CachedGroup::Uncached,
        })
    }

    /// Reads the rows of a group that no scope has changed, and caches them.
    async fn fetch(&self, miss: &CacheMiss) -> Result<Arc<Rows>, Error> {
        let CacheKey { index, cells } = &miss.key;
        let (found, is_committed) = self.load(miss, Some((index.group, &params(cells)))).await?;
        let rows = Arc::new(parse(index, &found)?);
        if is_committed {
            miss.fill(rows.clone());
        }
        Ok(rows)
    }

    /// Sends a query, and with it the key set's query and that of the rows to prefetch, if the miss
    /// wants them. Also returns whether the rows are certainly committed.
    async fn load(
        &self,
        miss: &CacheMiss,
        query: Option<(&'static Sql, &[Param<'_>])>,
    ) -> Result<(Vec<Row>, bool), Error> {
        let index = miss.key.index;
        let max_keys = miss.plan.wants_keys.unwrap_or(0);
        let keys = index.keys.filter(|_| miss.plan.wants_keys.is_some());
        let groups: Vec<_>;
        let ahead: Vec<Param<'_>> = match &miss.plan.prefetch {
            Ahead::Groups(keys) if keys.is_empty() => Vec::new(),
            Ahead::Groups(keys) => {
                groups = keys.iter().flat_map(|key| key.cells.iter()).collect();
                vec![&groups]
            }
            Ahead::Table { rows, bytes } => vec![rows, bytes],
        };
        let prefetch = index.prefetch.filter(|_| query.is_some() && !ahead.is_empty());

        let mut queries: Queries<'_> = Vec::new();
        queries.extend(query.map(|(sql, params)| (sql, self.with_id(params))));
        queries.extend(keys.map(|keys| (keys, self.with_id(&[&max_keys]))));
        queries.extend(prefetch.map(|prefetch| (prefetch.sql(), self.with_id(&ahead))));
        let (answers, is_committed) = self.fail_on_error(self.send(miss, queries).await)?;
        let mut answers = answers.into_iter();
        let found = query.and_then(|_| answers.next()).unwrap_or_default();
        if !is_committed {
            return Ok((found, false));
        }
        // Missing if the key set was disabled.
        if let Some(answer) = keys.and_then(|_| answers.next()) {
            let fingerprints: Option<&[u8]> = match answer.first() {
                Some(row) => column(row, 0, index.table.name)?,
                None => None,
            };
            miss.fill_keys(fingerprints.unwrap_or_default());
        }
        if let Some(answer) = prefetch.and_then(|_| answers.next()) {
            prefetch::fill(miss, &answer);
        }
        Ok((found, true))
    }

    /// Sends queries for rows that no scope has changed, together; if they fail, the first one
    /// alone, because the others are not required.
    async fn send(&self, miss: &CacheMiss, mut queries: Queries<'_>) -> Result<Fetched, Error> {
        match self.send_once(&queries).await {
            Err(error) if queries.len() > 1 => {
                debug!(%error, "a key set or prefetched rows could not be loaded");
                miss.disable_key_set();
                queries.truncate(1);
                self.send_once(&queries).await
            }
            result => result,
        }
    }

    async fn send_once(&self, queries: &Queries<'_>) -> Result<Fetched, Error> {
        let outside = |database: Database| async move {
            Ok((database.query_pipelined(queries).await?, true))
        };
        // A save is in the overlay before it is sent: if the overlay has none now, none was sent
        // before the read.
        let within = |scope: &Scope, answers| {
            Ok((answers, !queries.iter().any(|(sql, _)| scope.has_written(sql))))
        };
        self.route(queries, false, outside, within).await
    }

    /// A failed read fails the lane: its caller may take the row for absent, and save what follows
    /// from that. Not for a corrupt row, which is no failure of the database. A scope of another
    /// task that holds the lane ends first.
    fn fail_on_error<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if result.as_ref().is_err_and(|error| !matches!(error, Error::CorruptRow { .. })) {
            match self.overlay() {
                Ok(Some(scope)) if !scope.is_current() => scope.fail_at_end(&self.lane),
                _ => self.lane.fail(),
            }
        }
        result
    }

    pub(super) fn with_id<'a>(&'a self, params: &[Param<'a>]) -> Vec<Param<'a>> {
        std::iter::once(&self.lane.owner.account_id as Param<'_>)
            .chain(params.iter().copied())
            .collect()
    }
}

fn params(cells: &Cells) -> Vec<Param<'_>> {
    cells.iter().map(|cell| cell as Param<'_>).collect()
}

fn parse(index: &CacheIndex, rows: &[Row]) -> Result<Rows, Error> {
    let rows = rows.iter().map(|row| Cells::of(row, index.table.name));
    rows.map(|cells| cells.map(|cells| cells.split_at(index.row_key))).collect()
}
