//! Writes staged in memory, as rows per statement.
//!
//! A row staged again under the same key replaces the earlier one, because PostgreSQL refuses to
//! update a row twice in one `ON CONFLICT` (SQLSTATE 21000). Rows are sent in the order of their
//! keys, so that two writers lock them in the same order.
//!
//! The cache update of a write is staged with it: derived from the table, or named with a
//! hand-written statement.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt};

use bytes::BytesMut;
use tokio_postgres::types::{IsNull, Kind, ToSql, Type, to_sql_checked};

use crate::{
    Error,
    account::cache::{Cache, CacheUpdate, UncommittedOverlay},
    postgres::{
        cell::{Cell, Cells},
        statement::{Delete, ExpectedRows, Sql, Upsert, Write},
    },
};

/// Maximum size of a single statement: larger ones cost the server more memory and are no faster.
pub(crate) const CHUNK_BYTES: usize = 4 << 20;

/// Runs after the commit, and only then.
pub(crate) type OnCommit = Box<dyn FnOnce() + Send + Sync>;

/// The rows of one statement, by key.
struct Staged {
    write: &'static Write,
    rows: BTreeMap<Cells, Cells>,
}

/// Staged writes, sent as one transaction by the account's writer.
#[derive(Default)]
pub(crate) struct Batch {
    staged: Vec<Staged>,
    updates: Vec<CacheUpdate>,
    on_commit: Vec<OnCommit>,
    on_overlay: Vec<Box<dyn Fn() + Send + Sync>>,
    skipped: bool,
    /// A write of a cached table named no cache update.
    lacks_update: bool,
}

/// A statement to send.
pub(crate) struct Statement<'a> {
    pub(crate) sql: &'static Sql,
    pub(crate) columns: Vec<Column<'a>>,
    /// The server must report at least this many rows.
    pub(crate) min_rows: u64,
}

impl Batch {
    /// Stages a row to be written, under its whole key.
    pub(crate) fn upsert(
        &mut self,
        upsert: &'static Upsert,
        key: impl Into<Cells>,
        values: impl Into<Cells>,
    ) {
        let (key, values) = (key.into(), values.into());
        self.updates.extend(CacheUpdate::of_upsert(upsert.0.table, &key, &values));
        self.stage(&upsert.0, key, values);
    }

    /// Stages the deletion of a row.
    pub(crate) fn delete(&mut self, delete: &'static Delete, key: impl Into<Cells>) {
        let key = key.into();
        self.updates.extend(CacheUpdate::of_delete(delete.0.table, &key));
        self.stage(&delete.0, key, Cells::default());
    }

    /// Stages a row of a hand-written statement, and its cache updates.
    pub(crate) fn write(
        &mut self,
        write: &'static Write,
        key: impl Into<Cells>,
        values: impl Into<Cells>,
        updates: impl IntoIterator<Item = CacheUpdate>,
    ) {
        let before = self.updates.len();
        self.updates.extend(updates);
        self.lacks_update |= write.table.cache.is_some() && self.updates.len() == before;
        self.stage(write, key.into(), values.into());
    }

    /// Statements run in the order in which they were first staged.
    fn stage(&mut self, write: &'static Write, key: Cells, values: Cells) {
        let staged = self.staged.iter_mut().find(|staged| staged.write.sql.name == write.sql.name);
        match staged {
            Some(staged) => {
                staged.rows.insert(key, values);
            }
            None => self.staged.push(Staged { write, rows: BTreeMap::from([(key, values)]) }),
        }
    }

    /// Fails if a write of a cached table has no cache update.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self.lacks_update {
            true => Err(Error::Internal("a write of a cached table names no cache update")),
            false => Ok(()),
        }
    }

    /// Applies the writes to an overlay, for reads before the commit.
    pub(crate) fn apply_to(&self, overlay: &UncommittedOverlay) {
        overlay.apply(&self.updates, self.staged.iter().map(|staged| staged.write.table.name));
        self.on_overlay.iter().for_each(|act| act());
    }

    /// Runs `act` when the batch is applied to an overlay.
    pub(crate) fn on_overlay(&mut self, act: impl Fn() + Send + Sync + 'static) {
        self.on_overlay.push(Box::new(act));
    }

    /// Runs `act` when the batch has been committed.
    pub(crate) fn on_commit(&mut self, act: impl FnOnce() + Send + Sync + 'static) {
        self.on_commit.push(Box::new(act));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.staged.is_empty()
    }

    /// Records that a row was not staged because it is stored already.
    pub(crate) fn skip_unchanged(&mut self) {
        self.skipped = true;
    }

    pub(crate) fn has_skipped(&self) -> bool {
        self.skipped
    }

    pub(crate) fn rows(&self) -> usize {
        self.staged.iter().map(|staged| staged.rows.len()).sum()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.staged.iter().flat_map(|staged| &staged.rows).map(row_bytes).sum()
    }

    /// Applies the batches of one commit: updates the cache, all at once, then runs the `on_commit`
    /// actions.
    pub(crate) fn committed(batches: Vec<Self>, cache: &Cache) {
        let (updates, on_commit): (Vec<_>, Vec<_>) =
            batches.into_iter().map(|batch| (batch.updates, batch.on_commit)).unzip();
        cache.apply(updates.into_iter().flatten());
        on_commit.into_iter().flatten().for_each(|act| act());
    }

    /// The statements to send, each with its columns as arrays.
    pub(crate) fn statements(&self) -> Vec<Statement<'_>> {
        let statements = self.staged.iter().flat_map(|Staged { write, rows }| {
            chunks(rows).map(|rows| Statement {
                sql: &write.sql,
                columns: columns(&rows),
                min_rows: match write.expected_rows {
                    ExpectedRows::Each => rows.len() as u64,
                    ExpectedRows::Any => 0,
                },
            })
        });
        statements.collect()
    }
}

type Row<'a> = (&'a Cells, &'a Cells);

fn row_bytes((key, values): Row<'_>) -> usize {
    key.size() + values.size()
}

/// Splits the rows so that no chunk exceeds [`CHUNK_BYTES`], unless a single row does.
fn chunks(rows: &BTreeMap<Cells, Cells>) -> impl Iterator<Item = Vec<Row<'_>>> {
    let mut rows = rows.iter().peekable();
    std::iter::from_fn(move || {
        let mut chunk = Vec::new();
        let mut bytes = 0;
        while let Some(row) = rows.peek() {
            bytes += row_bytes(*row);
            if bytes > CHUNK_BYTES && !chunk.is_empty() {
                break;
            }
            chunk.extend(rows.next());
        }
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// Turns rows into one array for each of their columns.
fn columns<'a>(rows: &[Row<'a>]) -> Vec<Column<'a>> {
    let width = rows.first().map_or(0, |(key, values)| key.len() + values.len());
    let mut columns: Vec<_> = (0..width).map(|_| Vec::with_capacity(rows.len())).collect();
    for (key, values) in rows {
        for (column, cell) in columns.iter_mut().zip(key.iter().chain(values.iter())) {
            column.push(cell);
        }
    }
    columns.into_iter().map(Column).collect()
}

/// An array parameter. Its `Debug` prints no value, because tokio-postgres logs parameters at
/// `debug`.
pub(crate) struct Column<'a>(Vec<&'a Cell>);

impl fmt::Debug for Column<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} cells]", self.0.len())
    }
}

impl ToSql for Column<'_> {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        self.0.to_sql(ty, out)
    }

    fn accepts(ty: &Type) -> bool {
        matches!(ty.kind(), Kind::Array(_))
    }

    to_sql_checked!();
}
