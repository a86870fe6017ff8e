//! The one place where identifiers are built: a validated, quoted PostgreSQL schema name.

use crate::OpenStoreError;

/// PostgreSQL truncates longer identifiers silently (NAMEDATALEN - 1), so they are refused.
const MAX_IDENTIFIER_BYTES: usize = 63;

/// Placeholders of templates: for the schema's quoted name, and for the quotes of a function's
/// body.
const SCHEMA: &str = "{schema}";
const BODY: &str = "{body}";

/// The PostgreSQL schema that holds the crate's tables. Every statement names it, so that nothing
/// depends on `search_path`.
#[derive(Debug, Clone)]
pub(crate) struct Schema {
    name: String,
    quoted: String,
    /// A dollar quote that does not occur in the quoted name.
    body: String,
}

impl Schema {
    pub(crate) fn new(name: &str) -> Result<Self, OpenStoreError> {
        if name.is_empty() || name.len() > MAX_IDENTIFIER_BYTES || name.contains('\0') {
            return Err(OpenStoreError::InvalidConfig(format!(
                "the schema name must have 1 to {MAX_IDENTIFIER_BYTES} bytes and no NUL"
            )));
        }
        // PostgreSQL reserves the prefix, and `public` is shared.
        if name == "public" || name.starts_with("pg_") || name == "information_schema" {
            return Err(OpenStoreError::InvalidConfig(format!(
                "the schema {name:?} is shared or reserved: choose one for this crate alone"
            )));
        }
        let quoted = format!("\"{}\"", name.replace('"', "\"\""));
        let mut body = "$body$".to_owned();
        while quoted.contains(&body) {
            body.insert(1, '_');
        }
        Ok(Self { name: name.to_owned(), quoted, body })
    }

    /// The name as PostgreSQL's catalogs hold it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Replaces `{schema}` with the quoted name, and `{body}` with the quotes of a function's body.
    /// Neither may be inside other quotes. In a single pass, because the name may look like a
    /// placeholder.
    pub(crate) fn qualify(&self, template: &str) -> String {
        let mut text = String::with_capacity(2 * template.len());
        let mut rest = template;
        while let Some(at) = rest.find('{') {
            let (before, after) = rest.split_at(at);
            text.push_str(before);
            rest = if let Some(after) = after.strip_prefix(SCHEMA) {
                text.push_str(&self.quoted);
                after
            } else if let Some(after) = after.strip_prefix(BODY) {
                text.push_str(&self.body);
                after
            } else {
                text.push('{');
                &after[1..]
            };
        }
        text.push_str(rest);
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::Schema;

    fn qualify(name: &str, template: &str) -> String {
        Schema::new(name).unwrap().qualify(template)
    }

    #[test]
    fn a_name_is_not_read_as_a_template() {
        for (name, expected) in [
            ("bots", r#"{} "bots".t {x"#),
            ("{schema}", r#"{} "{schema}".t {x"#),
            ("{body}", r#"{} "{body}".t {x"#),
            (r#"a"b"#, r#"{} "a""b".t {x"#),
        ] {
            assert_eq!(qualify(name, "{} {schema}.t {x"), expected);
        }
    }

    #[test]
    fn the_quotes_of_a_body_do_not_occur_in_the_name() {
        for (name, quote) in [
            ("bots", "$body$"),
            ("a$$b", "$body$"),
            ("$body$", "$_body$"),
            ("a$body$b$_body$", "$__body$"),
        ] {
            let expected = format!("AS {quote} \"{name}\" {quote}");
            assert_eq!(qualify(name, "AS {body} {schema} {body}"), expected);
        }
    }
}
