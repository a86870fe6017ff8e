//! How numbers, times and tables are printed.

use std::{fmt::Write as _, time::SystemTime};

use matrix_sdk_postgres::admin::DeletedRows;
use serde::Serialize;
use serde_json::Value;

use crate::outcome::Error;

/// `12.3 MB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// `1 problem`, `2 problems`.
pub fn number(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// `2026-11-29T08:00:00Z`, or `never`.
pub fn time(time: Option<SystemTime>) -> String {
    time.map_or_else(
        || "never".to_owned(),
        |time| humantime::format_rfc3339_seconds(time).to_string(),
    )
}

pub const RED: u8 = 31;
pub const GREEN: u8 = 32;
pub const YELLOW: u8 = 33;
pub const CYAN: u8 = 36;

/// A word in a colour of the terminal, if there is one that wants colours.
pub fn coloured(word: &str, colour: u8, has_colours: bool) -> String {
    match has_colours {
        true => format!("\u{1b}[{colour}m{word}\u{1b}[0m"),
        false => word.to_owned(),
    }
}

/// The text, with control characters shown instead of sent to the terminal, but for the tool's own colours: names
/// from files, databases and servers may hold any.
pub fn printable(text: &str) -> String {
    let colours = [0, RED, GREEN, YELLOW, CYAN].map(|code| format!("\u{1b}[{code}m"));
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        let is_sent = !c.is_control()
            || matches!(c, '\n' | '\t')
            || colours.iter().any(|colour| text[at..].starts_with(colour));
        match is_sent {
            true => out.push(c),
            false => out.extend(c.escape_default()),
        }
    }
    out
}

/// Columns: the first to the left, the others to the right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    let header: Vec<String> = header.iter().map(ToString::to_string).collect();
    for row in std::iter::once(&header).chain(rows) {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = match column {
                0 => write!(text, "  {cell:<width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// Rows by table.
pub fn counts(deleted: &DeletedRows) -> String {
    let mut text = String::new();
    for count in &deleted.tables {
        let _ = writeln!(text, "  {:<25} {:>9} rows", count.table, count.rows);
    }
    text
}

/// What a library function has returned, for `--json`.
pub fn json(value: &impl Serialize) -> Result<Value, Error> {
    serde_json::to_value(value)
        .map_err(|error| Error::failed(format!("the result cannot be written as JSON: {error}")))
}
