//! Values of rows: staged for writes, kept by the cache, and sent as parameters of reads.

use std::{fmt, sync::Arc, time::SystemTime};

use bytes::BytesMut;
use tokio_postgres::{
    Row,
    types::{FromSql, IsNull, ToSql, Type, to_sql_checked},
};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::Error;

/// The value of one column of one row. Its `Debug` prints no value, because tokio-postgres logs
/// parameters at `debug`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Cell {
    Null,
    Bool(bool),
    /// Of a column of any integer type.
    Int(i64),
    Text(Arc<Wiped<String>>),
    Time(SystemTime),
    Bytes(Arc<Wiped<Vec<u8>>>),
}

/// Zeroized when it is dropped.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Zeroize, ZeroizeOnDrop)]
pub(crate) struct Wiped<T: Zeroize>(T);

/// Approximate overhead of a cell in memory and in a message, in addition to its bytes.
const CELL_BYTES: usize = 8;

impl Cell {
    /// The value of a column, or `None` when no cell has its type.
    fn of(row: &Row, index: usize) -> Option<Self> {
        fn get<'a, T: FromSql<'a>>(row: &'a Row, index: usize) -> Option<Option<T>> {
            row.try_get(index).ok()
        }
        let cell = match *row.columns().get(index)?.type_() {
            Type::BOOL => get(row, index)?.map(Self::Bool),
            Type::INT2 => get::<i16>(row, index)?.map(|value| Self::Int(value.into())),
            Type::INT4 => get::<i32>(row, index)?.map(|value| Self::Int(value.into())),
            Type::INT8 => get(row, index)?.map(Self::Int),
            Type::TEXT => get::<String>(row, index)?.map(Self::from),
            Type::TIMESTAMPTZ => get(row, index)?.map(Self::Time),
            Type::BYTEA => get::<Vec<u8>>(row, index)?.map(Self::from),
            _ => return None,
        };
        Some(cell.unwrap_or(Self::Null))
    }

    pub(crate) fn size(&self) -> usize {
        CELL_BYTES
            + match self {
                Self::Bytes(bytes) => bytes.0.len(),
                Self::Text(text) => text.0.len(),
                Self::Null | Self::Bool(_) | Self::Int(_) | Self::Time(_) => 0,
            }
    }

    /// The bytes that a key's fingerprint is computed from: the binary form that the SQL of
    /// [`ColumnType::key_bytes`] computes in the server.
    ///
    /// [`ColumnType::key_bytes`]: super::statement::ColumnType::key_bytes
    pub(crate) fn key_bytes(&self) -> BytesMut {
        let ty = match self {
            Self::Bool(_) => Type::BOOL,
            Self::Int(_) => Type::INT8,
            Self::Text(_) => Type::TEXT,
            Self::Time(_) => Type::TIMESTAMPTZ,
            Self::Null | Self::Bytes(_) => Type::BYTEA,
        };
        let mut bytes = BytesMut::new();
        // Fails only for a time outside of `timestamptz`'s range, which no row has.
        let _ = self.to_sql(&ty, &mut bytes);
        bytes
    }
}

impl From<Vec<u8>> for Cell {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(Arc::new(Wiped(bytes)))
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(Arc::new(Wiped(text)))
    }
}

impl From<bool> for Cell {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
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
            Self::Bool(value) => value.to_sql_checked(ty, out),
            Self::Int(value) => match *ty {
                Type::INT2 => i16::try_from(*value)?.to_sql_checked(ty, out),
                Type::INT4 => i32::try_from(*value)?.to_sql_checked(ty, out),
                _ => value.to_sql_checked(ty, out),
            },
            Self::Text(text) => text.0.to_sql_checked(ty, out),
            Self::Time(time) => time.to_sql_checked(ty, out),
            Self::Bytes(bytes) => bytes.0.to_sql_checked(ty, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        // `to_sql` checks the type against the value.
        true
    }

    to_sql_checked!();
}

/// The cells of a row, or of its key. Cheap to clone: the batch and the cache share them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Cells(Arc<[Cell]>);

impl Cells {
    /// All columns of a row.
    ///
    /// # Errors
    ///
    /// [`Error::CorruptRow`], which names the table, for a column whose type no cell has.
    pub(crate) fn of(row: &Row, table: &'static str) -> Result<Self, Error> {
        let cells = (0..row.len()).map(|index| Cell::of(row, index));
        cells.collect::<Option<_>>().map(Self).ok_or_else(|| wrong_type(table))
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Cell> {
        self.0.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first `count` cells, and the others.
    pub(crate) fn split_at(&self, count: usize) -> (Self, Self) {
        let (first, others) = self.0.split_at(count.min(self.0.len()));
        (Self(first.into()), Self(others.into()))
    }

    pub(crate) fn size(&self) -> usize {
        self.0.iter().map(Cell::size).sum()
    }

    /// The bytes of a column.
    ///
    /// # Errors
    ///
    /// [`Error::CorruptRow`], which names the table, when the column holds no bytes.
    pub(crate) fn bytes(&self, index: usize, table: &'static str) -> Result<&[u8], Error> {
        match self.0.get(index) {
            Some(Cell::Bytes(bytes)) => Ok(&bytes.0),
            _ => Err(wrong_type(table)),
        }
    }

    /// The boolean of a column.
    ///
    /// # Errors
    ///
    /// [`Error::CorruptRow`], which names the table, when the column holds no boolean.
    pub(crate) fn bool(&self, index: usize, table: &'static str) -> Result<bool, Error> {
        match self.0.get(index) {
            Some(Cell::Bool(value)) => Ok(*value),
            _ => Err(wrong_type(table)),
        }
    }
}

fn wrong_type(table: &'static str) -> Error {
    Error::CorruptRow { table, reason: "unexpected column type" }
}

impl<T: Into<Cell>, const N: usize> From<[T; N]> for Cells {
    fn from(cells: [T; N]) -> Self {
        cells.into_iter().map(Into::into).collect()
    }
}

impl FromIterator<Cell> for Cells {
    fn from_iter<I: IntoIterator<Item = Cell>>(cells: I) -> Self {
        Self(cells.into_iter().collect())
    }
}
