//! Fixed SQL with its parameter types, and the texts of one schema.

mod table;

use std::collections::HashMap;

use tokio_postgres::types::Type;

pub(crate) use self::table::{
    CacheIndex, Column, ColumnType, Delete, Reports, Table, Upsert, Write, bytea,
};
use crate::postgres::schema::Schema;

/// The condition of every write: the guard has set the transaction marker for this account. Read
/// without `missing_ok`, so that its absence is an error and not a write of no rows.
const TRANSACTION_MARKER: &str = "current_setting('matrix_sdk.tx') = $1::text";

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
    /// Follows from a table.
    Of(&'static Table, Action),
}

/// The statements that follow from a table.
#[derive(Debug, Clone, Copy)]
enum Action {
    Get,
    GetGroup,
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
        Self::of(name, Text::Of(table, Action::Get))
    }

    /// Reads the rows that the cache keeps together, of each what is left of its key and its values.
    pub(crate) const fn get_group(name: &'static str, table: &'static Table) -> Self {
        Self::of(name, Text::Of(table, Action::GetGroup))
    }

    /// Reads the fingerprints of the keys by which the cache groups the table's rows, of `$2` rows at
    /// most: the first 8 bytes of their SHA-256, one after the other.
    pub(crate) const fn key_set(name: &'static str, table: &'static Table) -> Self {
        Self::of(name, Text::Of(table, Action::KeySet))
    }

    const fn of(name: &'static str, text: Text) -> Self {
        Self { name, text }
    }

    /// The types of the parameters.
    pub(crate) fn types(&self) -> Vec<Type> {
        match self.text {
            Text::Fixed { types, .. } => types.to_vec(),
            Text::Of(table, action) => table.types(action),
        }
    }

    fn template(&self) -> String {
        match self.text {
            Text::Fixed { template, .. } => template.to_owned(),
            Text::Of(table, action) => table.template(action),
        }
    }

    /// What it does, as SQL calls it.
    pub(crate) fn operation(&self) -> &'static str {
        match self.text {
            Text::Fixed { template, .. } => template.split_whitespace().next().unwrap_or("SELECT"),
            Text::Of(_, Action::Get | Action::GetGroup | Action::KeySet) => "SELECT",
            Text::Of(_, Action::Upsert) => "INSERT",
            Text::Of(_, Action::Delete) => "DELETE",
        }
    }

    /// The table that it is named after, if that is one.
    pub(crate) fn own_table(&self) -> Option<&'static str> {
        let (table, _) = self.name.split_once('.')?;
        self.tables().contains(&table).then_some(table)
    }

    /// The tables that the statement names.
    pub(crate) fn tables(&self) -> Vec<&'static str> {
        match self.text {
            Text::Of(table, _) => vec![table.name],
            Text::Fixed { template, .. } => {
                let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let behind_schema = template.split("{schema}.").skip(1);
                behind_schema.filter_map(|text| text.split(|c| !is_name(c)).next()).collect()
            }
        }
    }
}

/// A statement as it is sent.
#[derive(Debug, Default)]
pub(crate) struct Rendered {
    pub(crate) text: String,
    pub(crate) types: Vec<Type>,
}

/// The texts of all statements, for one schema.
#[derive(Debug)]
pub(crate) struct Statements {
    schema: Schema,
    all: Vec<(&'static str, Rendered)>,
    by_name: HashMap<&'static str, usize>,
    unlisted: Rendered,
}

impl Statements {
    pub(crate) fn new(schema: Schema, all: Vec<&'static Sql>) -> Self {
        let render = |sql: &Sql| Rendered {
            // The schema's name comes last, for it may read like a placeholder.
            text: schema.qualify(&sql.template().replace("{guarded}", TRANSACTION_MARKER)),
            types: sql.types(),
        };
        let all: Vec<_> = all.into_iter().map(|sql| (sql.name, render(sql))).collect();
        let by_name = all.iter().enumerate().map(|(index, (name, _))| (*name, index)).collect();
        let unlisted =
            Rendered { text: "a statement that is not listed".into(), types: Vec::new() };
        Self { schema, all, by_name, unlisted }
    }

    pub(crate) fn schema(&self) -> &Schema {
        &self.schema
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(&'static str, Rendered)> {
        self.all.iter()
    }

    /// The statement as it is sent. PostgreSQL refuses the text of one that is not listed.
    pub(crate) fn get(&self, sql: &Sql) -> &Rendered {
        let listed = self.by_name.get(sql.name).and_then(|index| self.all.get(*index));
        listed.map_or(&self.unlisted, |(_, rendered)| rendered)
    }
}
