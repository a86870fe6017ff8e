//! Fixed SQL with its parameter types, and the texts of one schema.

mod prepared;
mod table;

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
};

use tokio_postgres::types::Type;

use self::prepared::Prepared;
pub(crate) use self::table::{
    CacheIndex, Column, ColumnType, Delete, ExpectedRows, Prefetched, Table, Upsert, Write, bytea,
};
use crate::postgres::schema::Schema;

/// The condition of every write: the guard has set the transaction marker for this account. Read
/// without `missing_ok`, so that its absence is an error and not a write of no rows.
const IS_GUARDED: &str = "current_setting('matrix_sdk.tx') = $1::text";

/// A statement of fixed text. `$1` is the account's id in every statement of a store.
#[derive(Debug)]
pub(crate) struct Sql {
    /// Names the statement in traces: `table.action`.
    pub(crate) name: &'static str,
    text: Text,
}

#[derive(Debug)]
enum Text {
    /// `{schema}` stands for the quoted schema, `{guarded}` for the condition of every write.
    Fixed { template: &'static str, types: &'static [Type] },
    /// Generated from a table.
    Generated(&'static Table, Action),
}

/// The statements that are generated from a table.
#[derive(Debug, Clone, Copy)]
enum Action {
    Get,
    GetGroup,
    GetFew,
    KeySet,
    Upsert,
    Delete,
}

impl Sql {
    /// A statement written out: in its template `{schema}` stands for the quoted schema, `{guarded}`
    /// for the condition of every write.
    pub(crate) const fn new(
        name: &'static str,
        template: &'static str,
        types: &'static [Type],
    ) -> Self {
        Self::of(name, Text::Fixed { template, types })
    }

    /// Reads the values of one row, whose key is its parameters.
    pub(crate) const fn get(name: &'static str, table: &'static Table) -> Self {
        Self::of(name, Text::Generated(table, Action::Get))
    }

    /// Reads the rows of a cache group: of each, the rest of its key, and its values.
    pub(crate) const fn get_group(name: &'static str, table: &'static Table) -> Self {
        Self::of(name, Text::Generated(table, Action::GetGroup))
    }

    /// Reads all rows, of each its key and its values; none if they are more than `$2`, or their values
    /// more than `$3` bytes.
    pub(crate) const fn get_few(name: &'static str, table: &'static Table) -> Self {
        Self::of(name, Text::Generated(table, Action::GetFew))
    }

    /// Reads the fingerprints of the cache keys of up to `$2` rows, concatenated: the first 8 bytes
    /// of the SHA-256 of each.
    pub(crate) const fn key_set(name: &'static str, table: &'static Table) -> Self {
        Self::of(name, Text::Generated(table, Action::KeySet))
    }

    const fn of(name: &'static str, text: Text) -> Self {
        Self { name, text }
    }

    /// The types of the parameters.
    pub(crate) fn types(&self) -> Vec<Type> {
        match self.text {
            Text::Fixed { types, .. } => types.to_vec(),
            Text::Generated(table, action) => table.types(action),
        }
    }

    fn template(&self) -> String {
        match self.text {
            Text::Fixed { template, .. } => template.to_owned(),
            Text::Generated(table, action) => table.template(action),
        }
    }

    /// The SQL command.
    pub(crate) fn operation(&self) -> &'static str {
        match self.text {
            Text::Fixed { template, .. } => template.split_whitespace().next().unwrap_or("SELECT"),
            Text::Generated(_, Action::Upsert) => "INSERT",
            Text::Generated(_, Action::Delete) => "DELETE",
            Text::Generated(..) => "SELECT",
        }
    }

    /// The table in the statement's name, if the statement uses it.
    pub(crate) fn own_table(&self) -> Option<&'static str> {
        let (table, _) = self.name.split_once('.')?;
        self.tables().contains(&table).then_some(table)
    }

    /// The tables that the statement names.
    pub(crate) fn tables(&self) -> Vec<&'static str> {
        match self.text {
            Text::Generated(table, _) => vec![table.name],
            Text::Fixed { template, .. } => {
                let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let behind_schema = template.split("{schema}.").skip(1);
                behind_schema.filter_map(|text| text.split(|c| !is_name(c)).next()).collect()
            }
        }
    }
}

/// A statement as it is sent: behind a comment with its name, which `pg_stat_statements` and
/// `pg_stat_activity` show.
#[derive(Debug, Default)]
pub(crate) struct Rendered {
    pub(crate) text: String,
    pub(crate) types: Vec<Type>,
}

/// The texts of all statements, for one schema.
pub(crate) struct Statements {
    /// Those that are prepared, on the connections of all pools.
    pub(crate) prepared: Prepared,
    schema: Schema,
    listed: Vec<&'static Sql>,
    all: Vec<(&'static str, Rendered)>,
    by_name: HashMap<&'static str, usize>,
    unlisted: Rendered,
}

/// The statement with its name as a comment, by which the server's views show what has sent it. Behind
/// the first word: `pg_stat_statements` drops a comment before it since PostgreSQL 18.
pub(crate) fn named(sql: &str, name: &str) -> String {
    match sql.split_once(char::is_whitespace) {
        Some((first, others)) => format!("{first} /* {name} */ {others}"),
        None => sql.to_owned(),
    }
}

impl Statements {
    pub(crate) fn new(schema: Schema, all: Vec<&'static Sql>) -> Self {
        let render = |sql: &Sql| Rendered {
            // The schema's name is inserted last, because it may look like a placeholder.
            text: named(
                &schema.qualify(sql.template().trim().replace("{guarded}", IS_GUARDED).as_str()),
                sql.name,
            ),
            types: sql.types(),
        };
        let listed = all.clone();
        let all: Vec<_> = all.into_iter().map(|sql| (sql.name, render(sql))).collect();
        let by_name = all.iter().enumerate().map(|(index, (name, _))| (*name, index)).collect();
        let unlisted =
            Rendered { text: "a statement that is not listed".into(), types: Vec::new() };
        Self { prepared: Prepared::default(), schema, listed, all, by_name, unlisted }
    }

    /// The same, shared by all who use these statements of this schema: their texts take 23 kB, and on a
    /// shared connection they are prepared once.
    pub(crate) fn shared(schema: Schema, all: Vec<&'static Sql>) -> Arc<Self> {
        static SHARED: LazyLock<Mutex<Vec<Weak<Statements>>>> = LazyLock::new(Mutex::default);
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let found = shared
            .iter()
            .filter_map(Weak::upgrade)
            .find(|statements| statements.is_of(&schema, &all));
        if let Some(found) = found {
            return found;
        }
        let new = Arc::new(Self::new(schema, all));
        shared.retain(|statements| statements.strong_count() > 0);
        shared.push(Arc::downgrade(&new));
        new
    }

    fn is_of(&self, schema: &Schema, all: &[&'static Sql]) -> bool {
        let is_same = |(one, other): (&&'static Sql, &&'static Sql)| std::ptr::eq(*one, *other);
        self.schema.name() == schema.name()
            && self.listed.len() == all.len()
            && self.listed.iter().zip(all).all(is_same)
    }

    pub(crate) fn schema(&self) -> &Schema {
        &self.schema
    }

    #[cfg(feature = "testing")]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(&'static str, Rendered)> {
        self.all.iter()
    }

    /// The statement as it is sent. For one that is not listed, a text that PostgreSQL refuses.
    pub(crate) fn get(&self, sql: &Sql) -> &Rendered {
        let listed = self.by_name.get(sql.name).and_then(|index| self.all.get(*index));
        listed.map_or(&self.unlisted, |(_, rendered)| rendered)
    }
}
