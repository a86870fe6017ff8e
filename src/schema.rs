//! The one place where identifiers are built: a validated, quoted PostgreSQL schema name.

use crate::OpenStoreError;

/// PostgreSQL truncates longer identifiers silently (NAMEDATALEN - 1), so they are refused.
const MAX_IDENTIFIER_BYTES: usize = 63;

/// The PostgreSQL schema that holds our tables. Every statement names it, so that nothing depends
/// on `search_path`.
#[derive(Debug, Clone)]
pub(crate) struct Schema {
    name: String,
    quoted: String,
}

impl Schema {
    pub(crate) fn new(name: &str) -> Result<Self, OpenStoreError> {
        if name.is_empty() || name.len() > MAX_IDENTIFIER_BYTES || name.contains('\0') {
            return Err(OpenStoreError::InvalidConfig(format!(
                "the schema name must have 1 to {MAX_IDENTIFIER_BYTES} bytes and no NUL"
            )));
        }
        // PostgreSQL reserves the prefix, and `public` is everybody's.
        if name == "public" || name.starts_with("pg_") || name == "information_schema" {
            return Err(OpenStoreError::InvalidConfig(format!(
                "the schema {name:?} is shared or reserved: choose one for this crate alone"
            )));
        }
        Ok(Self { name: name.to_owned(), quoted: format!("\"{}\"", name.replace('"', "\"\"")) })
    }

    /// The name as PostgreSQL's catalogs hold it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Puts the quoted name in the place of `{schema}`.
    pub(crate) fn qualify(&self, template: &str) -> String {
        template.replace("{schema}", &self.quoted)
    }
}
