//! Writes staged in memory, as rows per statement.
//!
//! A row staged again under the same key replaces the earlier one, for PostgreSQL refuses to touch
//! a row twice in one `ON CONFLICT` (SQLSTATE 21000). Rows leave in the order of their keys, so that
//! two writers lock them in the same order.

use std::{collections::BTreeMap, fmt, sync::Arc};

use bytes::BytesMut;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use crate::{
    account::{
        cache::{Cache, Effect, Pending, Stored},
        cipher::Key,
    },
    postgres::statement::Sql,
};

/// How much a single statement carries: larger ones cost the server more memory and are no faster.
pub(crate) const CHUNK_BYTES: usize = 4 << 20;

/// One column of one staged row.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cell {
    Null,
    Int(i32),
    Bool(bool),
    Bytes(Vec<u8>),
    /// Bytes that the cache may keep.
    Stored(Arc<Stored>),
}

impl Cell {
    fn bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len() + 4,
            Self::Stored(row) => row.data.len() + 4,
            _ => 8,
        }
    }
}

impl From<Vec<u8>> for Cell {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<Key> for Cell {
    fn from(key: Key) -> Self {
        Self::Bytes(key.into_bytes())
    }
}

impl From<Arc<Stored>> for Cell {
    fn from(row: Arc<Stored>) -> Self {
        Self::Stored(row)
    }
}

/// What runs after the commit, and only then.
pub(crate) type OnCommit = Box<dyn FnOnce() + Send + Sync>;

/// The rows of one statement, by key.
struct Staged {
    sql: &'static Sql,
    rows: BTreeMap<Vec<Cell>, Vec<Cell>>,
}

/// Staged writes, sent as one transaction by the account's writer.
#[derive(Default)]
pub(crate) struct Batch {
    staged: Vec<Staged>,
    effects: Vec<Effect>,
    on_commit: Vec<OnCommit>,
    on_show: Vec<Box<dyn Fn() + Send + Sync>>,
    skipped: bool,
}

impl Batch {
    /// Stages a row of `sql`, whose parameters after `$1` are arrays, one for each cell.
    ///
    /// Statements run in the order in which they were first staged.
    pub(crate) fn put(
        &mut self,
        sql: &'static Sql,
        key: impl IntoIterator<Item = Cell>,
        values: impl IntoIterator<Item = Cell>,
    ) {
        let index = match self.staged.iter().position(|staged| staged.sql.name == sql.name) {
            Some(index) => index,
            None => {
                self.staged.push(Staged { sql, rows: BTreeMap::new() });
                self.staged.len() - 1
            }
        };
        let (key, values) = (key.into_iter().collect(), values.into_iter().collect());
        self.staged[index].rows.insert(key, values);
    }

    /// Says what a staged row means to the cache.
    pub(crate) fn note(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Shows the writes to those who are to see them before they are committed.
    pub(crate) fn show(&self, pending: &Pending) {
        let tables = self.staged.iter().flat_map(|staged| staged.sql.tables());
        pending.apply(&self.effects, tables);
        self.on_show.iter().for_each(|effect| effect());
    }

    /// Runs `effect` when reads find in an overlay what the batch writes.
    pub(crate) fn on_show(&mut self, effect: impl Fn() + Send + Sync + 'static) {
        self.on_show.push(Box::new(effect));
    }

    /// Runs `effect` when the batch has been committed.
    pub(crate) fn on_commit(&mut self, effect: impl FnOnce() + Send + Sync + 'static) {
        self.on_commit.push(Box::new(effect));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.staged.is_empty()
    }

    /// Notes that something was to be written which is stored already.
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
        let rows = self.staged.iter().flat_map(|staged| &staged.rows);
        rows.flat_map(|(key, values)| key.iter().chain(values)).map(Cell::bytes).sum()
    }

    /// Tells what was committed together: the cache, all at once, and whoever waits for it.
    pub(crate) fn committed(batches: Vec<Self>, cache: &Cache) {
        let (effects, on_commit): (Vec<_>, Vec<_>) =
            batches.into_iter().map(|batch| (batch.effects, batch.on_commit)).unzip();
        cache.apply(effects.into_iter().flatten());
        on_commit.into_iter().flatten().for_each(|effect| effect());
    }

    /// The statements to send, each with its columns as arrays.
    pub(crate) fn statements(&self) -> Vec<(&'static Sql, Vec<Column<'_>>)> {
        self.staged
            .iter()
            .flat_map(|staged| {
                chunks(&staged.rows).map(|rows| (staged.sql, columns(staged.sql, &rows)))
            })
            .collect()
    }
}

type Row<'a> = (&'a Vec<Cell>, &'a Vec<Cell>);

/// Cuts the rows so that no chunk exceeds [`CHUNK_BYTES`], unless a single row does.
fn chunks(rows: &BTreeMap<Vec<Cell>, Vec<Cell>>) -> impl Iterator<Item = Vec<Row<'_>>> {
    let mut rows = rows.iter().peekable();
    std::iter::from_fn(move || {
        let mut chunk = Vec::new();
        let mut bytes = 0;
        while let Some((key, values)) = rows.peek() {
            bytes += key.iter().chain(values.iter()).map(Cell::bytes).sum::<usize>();
            if bytes > CHUNK_BYTES && !chunk.is_empty() {
                break;
            }
            chunk.extend(rows.next());
        }
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// Turns rows into one array for each parameter after the account's id.
fn columns<'a>(sql: &Sql, rows: &[Row<'a>]) -> Vec<Column<'a>> {
    (0..sql.types.len() - 1)
        .map(|index| {
            Column(
                rows.iter()
                    .map(|(key, values)| {
                        key.get(index)
                            .or_else(|| values.get(index - key.len()))
                            .unwrap_or(&Cell::Null)
                    })
                    .collect(),
            )
        })
        .collect()
}

/// An array parameter. Its `Debug` is silent, for tokio-postgres logs parameters at `debug`.
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
        [Type::BYTEA_ARRAY, Type::INT4_ARRAY, Type::BOOL_ARRAY].contains(ty)
    }

    to_sql_checked!();
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("_")
    }
}

impl ToSql for Cell {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            Self::Int(value) => value.to_sql_checked(ty, out),
            Self::Bool(value) => value.to_sql_checked(ty, out),
            Self::Bytes(value) => value.to_sql_checked(ty, out),
            Self::Stored(row) => row.data.to_sql_checked(ty, out),
        }
    }

    fn accepts(ty: &Type) -> bool {
        [Type::BYTEA, Type::INT4, Type::BOOL].contains(ty)
    }

    to_sql_checked!();
}
