//! Fixed SQL with its parameter types, and the texts of one schema.

use std::collections::HashMap;

use tokio_postgres::types::Type;

use crate::postgres::schema::Schema;

/// What every write asks for: that the guard has let its transaction pass. The setting ends with the
/// transaction, so a write outside of one does nothing.
const GUARDED: &str = "current_setting('matrix_sdk.tx', true) = $1::text";

/// A statement of fixed text. `$1` is the account's id in every statement of a store.
#[derive(Debug)]
pub(crate) struct Sql {
    /// Names the statement in traces: `table.action`.
    pub(crate) name: &'static str,
    /// `{schema}` stands for the quoted schema, `{guarded}` for the condition of every write.
    pub(crate) template: &'static str,
    pub(crate) types: &'static [Type],
}

impl Sql {
    /// The tables that the statement names.
    pub(crate) fn tables(&self) -> impl Iterator<Item = &'static str> + use<> {
        let behind_schema = self.template.split("{schema}.").skip(1);
        behind_schema.map(|text| {
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            text.split(|c| !is_name(c)).next().unwrap_or_default()
        })
    }
}

/// The texts of all statements, for one schema.
#[derive(Debug)]
pub(crate) struct Statements {
    schema: Schema,
    all: Vec<&'static Sql>,
    texts: HashMap<&'static str, String>,
}

impl Statements {
    pub(crate) fn new(schema: Schema, all: Vec<&'static Sql>) -> Self {
        // The schema's name comes last, for it may read like a placeholder.
        let text = |sql: &Sql| schema.qualify(&sql.template.replace("{guarded}", GUARDED));
        let texts = all.iter().map(|sql| (sql.name, text(sql))).collect();
        Self { schema, all, texts }
    }

    pub(crate) fn schema(&self) -> &Schema {
        &self.schema
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static Sql, &str)> {
        self.all.iter().map(|sql| (*sql, self.text(sql)))
    }

    /// The text, or the template of a statement that is not listed: PostgreSQL refuses the braces.
    pub(crate) fn text(&self, sql: &'static Sql) -> &str {
        self.texts.get(sql.name).map_or(sql.template, String::as_str)
    }
}

/// The statement that reads `data` of one row of a table, found by one or two keys.
macro_rules! get_by_key {
    ($table:literal, $key:literal) => {
        Sql {
            name: concat!($table, ".get"),
            template: concat!(
                "SELECT data FROM {schema}.",
                $table,
                " WHERE account_id = $1 AND ",
                $key,
                " = $2"
            ),
            types: &[Type::INT8, Type::BYTEA],
        }
    };
    ($table:literal, $first:literal, $second:literal) => {
        Sql {
            name: concat!($table, ".get"),
            template: concat!(
                "SELECT data FROM {schema}.",
                $table,
                " WHERE account_id = $1 AND ",
                $first,
                " = $2 AND ",
                $second,
                " = $3"
            ),
            types: &[Type::INT8, Type::BYTEA, Type::BYTEA],
        }
    };
}

/// The statement that reads the fingerprints of a table's keys, of `$2` rows at most: the first 8
/// bytes of their SHA-256, one after the other.
macro_rules! keys_of {
    ($table:literal, $key:literal) => {
        Sql {
            name: concat!($table, ".keys"),
            template: concat!(
                "SELECT string_agg(substring(sha256(k.key) FOR 8), ''::bytea) FROM (SELECT ",
                $key,
                " AS key FROM {schema}.",
                $table,
                " WHERE account_id = $1 LIMIT $2) k"
            ),
            types: &[Type::INT8, Type::INT8],
        }
    };
}

/// The statement that writes `data` of many rows of a table; the newest wins.
macro_rules! upsert_by_key {
    ($table:literal, $key:literal) => {
        Sql {
            name: concat!($table, ".upsert"),
            template: concat!(
                "INSERT INTO {schema}.",
                $table,
                " (account_id, ",
                $key,
                ", data) ",
                "SELECT $1, u.key, u.data FROM unnest($2, $3) AS u (key, data) WHERE {guarded} ",
                "ON CONFLICT (account_id, ",
                $key,
                ") DO UPDATE SET data = excluded.data"
            ),
            types: &[Type::INT8, Type::BYTEA_ARRAY, Type::BYTEA_ARRAY],
        }
    };
    ($table:literal, $first:literal, $second:literal) => {
        Sql {
            name: concat!($table, ".upsert"),
            template: concat!(
                "INSERT INTO {schema}.",
                $table,
                " (account_id, ",
                $first,
                ", ",
                $second,
                ", data) ",
                "SELECT $1, u.first, u.second, u.data ",
                "FROM unnest($2, $3, $4) AS u (first, second, data) WHERE {guarded} ",
                "ON CONFLICT (account_id, ",
                $first,
                ", ",
                $second,
                ") ",
                "DO UPDATE SET data = excluded.data"
            ),
            types: &[Type::INT8, Type::BYTEA_ARRAY, Type::BYTEA_ARRAY, Type::BYTEA_ARRAY],
        }
    };
}

/// The statement that deletes many rows of a table, found by one key.
macro_rules! delete_by_key {
    ($table:literal, $key:literal) => {
        Sql {
            name: concat!($table, ".delete"),
            template: concat!(
                "DELETE FROM {schema}.",
                $table,
                " WHERE account_id = $1 AND {guarded} AND ",
                $key,
                " = ANY ($2)"
            ),
            types: &[Type::INT8, Type::BYTEA_ARRAY],
        }
    };
}

pub(crate) use {delete_by_key, get_by_key, keys_of, upsert_by_key};
