//! What a file holds, and what of it comes along.

use std::{collections::BTreeMap, fmt::Write};

use serde_json::{Value, json};

use super::{source::Source, table::Table, walk::Tally};

/// What would come, or has come.
pub struct Report {
    user_id: String,
    device_id: String,
    version: u8,
    is_encrypted: bool,
    warning: Option<String>,
    pub tallies: BTreeMap<Table, Tally>,
}

impl Report {
    pub fn new(source: &Source, tallies: BTreeMap<Table, Tally>) -> Self {
        let account = source.account();
        Self {
            user_id: account.user_id.to_string(),
            device_id: account.device_id.to_string(),
            version: source.version,
            is_encrypted: source.values.is_encrypted(),
            warning: source.rooms.warning.clone(),
            tallies,
        }
    }

    /// How many rows cannot be decoded.
    pub fn undecodable(&self) -> u64 {
        self.tallies.values().map(|tally| tally.undecodable).sum()
    }

    /// For people; `comes` is the heading of what is carried over.
    pub fn text(&self, comes: &str) -> String {
        let Self { user_id, device_id, version, .. } = self;
        let sealed = if self.is_encrypted { "encrypted" } else { "not encrypted" };
        let mut text =
            format!("{user_id}, device {device_id}; schema version {version}, {sealed}\n\n");
        let _ = writeln!(text, "{:<36}{:>10}{:>12}", "table", "rows", comes);
        for (table, tally) in &self.tallies {
            let carried = tally.carried;
            let _ = writeln!(text, "{:<36}{:>10}{carried:>12}", table.name(), tally.rows);
            for (why, count) in notes(*table, tally) {
                let _ = writeln!(text, "  {count} left: {why}");
            }
        }
        if let Some(warning) = &self.warning {
            let _ = writeln!(text, "\nThe state store's rooms are not known: {warning}");
        }
        text
    }

    pub fn json(&self) -> Value {
        let tables = self.tallies.iter().map(|(table, tally)| {
            let left: Vec<_> = notes(*table, tally)
                .into_iter()
                .map(|(why, count)| json!({ "rows": count, "why": why }))
                .collect();
            let value = json!({ "rows": tally.rows, "carried": tally.carried, "left": left });
            (table.name().to_owned(), value)
        });
        let tables: serde_json::Map<_, _> = tables.collect();
        json!({
            "user_id": self.user_id,
            "device_id": self.device_id,
            "schema_version": self.version,
            "encrypted": self.is_encrypted,
            "warning": self.warning,
            "tables": tables,
            "undecodable": self.undecodable(),
        })
    }
}

/// What does not come, and why.
fn notes(table: Table, tally: &Tally) -> Vec<(String, u64)> {
    let mut notes: Vec<_> =
        tally.left.iter().map(|(why, count)| ((*why).to_owned(), *count)).collect();
    if tally.own > 0 {
        let why = match table {
            Table::Leases => "a lock between processes, which ends by itself",
            _ => "the file's own version and key",
        };
        notes.push((why.to_owned(), tally.own));
    }
    if tally.repeated > 0 {
        notes.push(("a later row says the same".to_owned(), tally.repeated));
    }
    if tally.undecodable > 0 {
        let rows: Vec<_> = tally.undecodable_rows.iter().map(ToString::to_string).collect();
        let more = if tally.undecodable > rows.len() as u64 { ", …" } else { "" };
        notes.push((
            format!("cannot be decoded (rowid {}{more})", rows.join(", ")),
            tally.undecodable,
        ));
    }
    notes
}
