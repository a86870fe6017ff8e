//! Tables, and the statements that are generated from them.

use tokio_postgres::types::Type;

use super::{Action, Sql, Text};

/// A table of a store. Its statements, the cache keys of its rows, and the cache updates of its
/// writes are derived from it.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    /// The primary key after `account_id`.
    pub(crate) key: &'static [Column],
    /// The other columns, which are read and written with the key.
    pub(crate) values: &'static [Column],
    /// How its rows are cached, if they are.
    pub(crate) cache: Option<&'static CacheIndex>,
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column(pub(crate) &'static str, pub(crate) ColumnType);

pub(crate) const fn bytea(name: &'static str) -> Column {
    Column(name, ColumnType::Bytea)
}

#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "a store may have columns of these types")]
pub(crate) enum ColumnType {
    Bool,
    Int2,
    Int8,
    Text,
    Timestamptz,
    Bytea,
}

impl ColumnType {
    pub(crate) fn scalar(self) -> Type {
        match self {
            Self::Bool => Type::BOOL,
            Self::Int2 => Type::INT2,
            Self::Int8 => Type::INT8,
            Self::Text => Type::TEXT,
            Self::Timestamptz => Type::TIMESTAMPTZ,
            Self::Bytea => Type::BYTEA,
        }
    }

    fn array(self) -> Type {
        match self {
            Self::Bool => Type::BOOL_ARRAY,
            Self::Int2 => Type::INT2_ARRAY,
            Self::Int8 => Type::INT8_ARRAY,
            Self::Text => Type::TEXT_ARRAY,
            Self::Timestamptz => Type::TIMESTAMPTZ_ARRAY,
            Self::Bytea => Type::BYTEA_ARRAY,
        }
    }

    /// SQL for the bytes that a key's fingerprint is computed from; the same as `Cell::key_bytes`.
    pub(crate) fn key_bytes(self, column: &str) -> String {
        match self {
            Self::Bytea => column.to_owned(),
            Self::Bool => format!("boolsend({column})"),
            Self::Int2 | Self::Int8 => format!("int8send({column})"),
            Self::Text => format!("convert_to({column}, 'UTF8')"),
            Self::Timestamptz => format!("timestamptz_send({column})"),
        }
    }
}

/// How the rows of a table are cached: those that share a cache key are a group, which is read,
/// kept and dropped as one.
#[derive(Debug)]
pub(crate) struct CacheIndex {
    pub(crate) table: &'static Table,
    /// Reads the rows of a group, whose key is the first parameters: of each row the key within the
    /// group, then the cached columns. This statement's name identifies the index.
    pub(crate) group: &'static Sql,
    /// Reads the cached columns of one row, for when reading its whole group does not pay.
    pub(crate) row: Option<&'static Sql>,
    /// Reads the fingerprints of the keys of all groups.
    pub(crate) keys: Option<&'static Sql>,
    /// What is read together with a group. Prefetched rows are cached; those of an index that keeps
    /// no rows, for one read.
    pub(crate) prefetch: Option<Prefetched>,
    /// How many columns identify a row within its group.
    pub(crate) row_key: usize,
    /// Whether rows are cached, or only which groups have any.
    pub(crate) keeps_rows: bool,
}

/// Reads more rows than were asked for: of each its whole key, then the cached columns.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Prefetched {
    /// The rows of groups that are expected to be read, whose keys, of one column, are the array `$2`.
    Expected(&'static Sql),
    /// All rows of the account, once the key set shows that they are few; none if they are more than
    /// `$2`, or their values more than `$3` bytes.
    SmallTable(&'static Sql),
}

impl Prefetched {
    pub(crate) fn sql(self) -> &'static Sql {
        let (Self::Expected(sql) | Self::SmallTable(sql)) = self;
        sql
    }
}

impl PartialEq for CacheIndex {
    fn eq(&self, other: &Self) -> bool {
        self.group.name == other.group.name
    }
}

impl Eq for CacheIndex {}

impl std::hash::Hash for CacheIndex {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.group.name.hash(state);
    }
}

/// The number of rows that a write must affect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExpectedRows {
    /// One for each staged row; fewer is an error.
    Each,
    /// Any number: a deletion or a mark affects the rows that exist, an insertion may find its row
    /// present.
    Any,
}

/// A write of staged rows: its parameters after `$1` are arrays, one for each cell of a row.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) sql: Sql,
    pub(crate) table: &'static Table,
    pub(crate) expected_rows: ExpectedRows,
}

/// Writes rows of a table; the newest wins.
#[derive(Debug)]
pub(crate) struct Upsert(pub(crate) Write);

impl Upsert {
    pub(crate) const fn new(name: &'static str, table: &'static Table) -> Self {
        let sql = Sql::of(name, Text::Generated(table, Action::Upsert));
        Self(Write {
            sql,
            table,
            expected_rows: if table.values.is_empty() {
                ExpectedRows::Any
            } else {
                ExpectedRows::Each
            },
        })
    }

    pub(crate) const fn sql(&'static self) -> &'static Sql {
        &self.0.sql
    }
}

/// Deletes rows of a table by their keys.
#[derive(Debug)]
pub(crate) struct Delete(pub(crate) Write);

impl Delete {
    pub(crate) const fn new(name: &'static str, table: &'static Table) -> Self {
        let sql = Sql::of(name, Text::Generated(table, Action::Delete));
        Self(Write { sql, table, expected_rows: ExpectedRows::Any })
    }

    pub(crate) const fn sql(&'static self) -> &'static Sql {
        &self.0.sql
    }
}

impl Table {
    /// The columns of the cache key; the whole key for a table that is not cached.
    fn group(&self) -> &[Column] {
        let others = self.cache.map_or(0, |index| index.row_key);
        &self.key[..self.key.len().saturating_sub(others)]
    }

    pub(super) fn types(&self, action: Action) -> Vec<Type> {
        let scalars = |columns: &[Column]| columns.iter().map(|column| column.1.scalar()).collect();
        let arrays = |columns: &[Column]| columns.iter().map(|column| column.1.array()).collect();
        let params: Vec<Type> = match action {
            Action::Get => scalars(self.key),
            Action::GetGroup => scalars(self.group()),
            Action::KeySet => vec![Type::INT8],
            Action::GetFew => vec![Type::INT8, Type::INT8],
            Action::Upsert => arrays(&[self.key, self.values].concat()),
            Action::Delete => arrays(self.key),
        };
        std::iter::once(Type::INT8).chain(params).collect()
    }

    pub(super) fn template(&self, action: Action) -> String {
        let name = self.name;
        match action {
            Action::Get => {
                let values =
                    if self.values.is_empty() { "1".to_owned() } else { list("", self.values) };
                format!("SELECT {values} FROM {{schema}}.{name}\nWHERE {}", found_by(self.key))
            }
            Action::GetGroup => {
                let group = self.group();
                let columns = [&self.key[group.len()..], self.values].concat();
                let columns = list("", &columns);
                format!("SELECT {columns} FROM {{schema}}.{name}\nWHERE {}", found_by(group))
            }
            Action::GetFew => {
                let columns = list("", &[self.key, self.values].concat());
                let values = self.values.iter().map(|Column(name, ty)| ty.key_bytes(name));
                let bytes = values.map(|value| format!("coalesce(octet_length({value}), 0)"));
                let bytes = bytes.chain(["0".to_owned()]).collect::<Vec<_>>().join(" + ");
                format!(
                    "SELECT {columns}\n\
                     FROM (SELECT *, count(*) OVER () AS number, sum({bytes}) OVER () AS bytes\n      \
                     FROM (SELECT {columns} FROM {{schema}}.{name}\n            \
                     WHERE account_id = $1 LIMIT $2 + 1) few) few\n\
                     WHERE number <= $2 AND bytes <= $3"
                )
            }
            Action::KeySet => {
                let bytes = self.group().iter().map(|Column(name, ty)| ty.key_bytes(name));
                let bytes = bytes.collect::<Vec<_>>().join(" || ");
                format!(
                    "SELECT string_agg(substring(sha256(k.key) FOR 8), ''::bytea)\n\
                     FROM (SELECT {bytes} AS key\n      \
                     FROM {{schema}}.{name} WHERE account_id = $1 LIMIT $2) k"
                )
            }
            Action::Upsert => self.upsert(),
            Action::Delete => self.delete(),
        }
    }

    /// The rows are joined with the owner's row: a database that is distributed by account then
    /// runs the whole statement where the account is.
    fn upsert(&self) -> String {
        let name = self.name;
        let columns = [self.key, self.values].concat();
        let (all, staged, params) = (list("", &columns), list("u.", &columns), params(&columns));
        let conflict = std::iter::once("account_id").chain(self.key.iter().map(|column| column.0));
        let conflict = conflict.collect::<Vec<_>>().join(", ");
        let update = match self.values {
            [] => "DO NOTHING".to_owned(),
            values => {
                let set = values.iter().map(|Column(name, _)| format!("{name} = excluded.{name}"));
                format!("DO UPDATE SET {}", set.collect::<Vec<_>>().join(", "))
            }
        };
        format!(
            "INSERT INTO {{schema}}.{name} (account_id, {all})\n\
             SELECT o.account_id, {staged}\n\
             FROM {{schema}}.account_owners o CROSS JOIN unnest({params}) AS u ({all})\n\
             WHERE o.account_id = $1 AND {{guarded}}\n\
             ON CONFLICT ({conflict}) {update}"
        )
    }

    fn delete(&self) -> String {
        let name = self.name;
        if let [Column(key, _)] = self.key {
            return format!(
                "DELETE FROM {{schema}}.{name}\n\
                 WHERE account_id = $1 AND {{guarded}} AND {key} = ANY ($2)"
            );
        }
        let (columns, params) = (list("", self.key), params(self.key));
        let equal = self.key.iter().map(|Column(key, _)| format!("\n  AND d.{key} = u.{key}"));
        let equal = equal.collect::<String>();
        format!(
            "DELETE FROM {{schema}}.{name} d USING unnest({params}) AS u ({columns})\n\
             WHERE d.account_id = $1 AND {{guarded}}{equal}"
        )
    }
}

fn list(prefix: &str, columns: &[Column]) -> String {
    let columns = columns.iter().map(|Column(name, _)| format!("{prefix}{name}"));
    columns.collect::<Vec<_>>().join(", ")
}

/// The parameters after the account's id.
fn params(columns: &[Column]) -> String {
    let params = (2..).take(columns.len()).map(|number| format!("${number}"));
    params.collect::<Vec<_>>().join(", ")
}

fn found_by(key: &[Column]) -> String {
    let conditions =
        key.iter().zip(2..).map(|(Column(name, _), number)| format!(" AND {name} = ${number}"));
    format!("account_id = $1{}", conditions.collect::<String>())
}
