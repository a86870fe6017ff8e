//! Tables in Markdown.

use std::fmt::Write;

use super::readings::Case;
use crate::bench::contenders::{Contender, DISTANCES};

/// The columns of a table of plain or of encrypted stores.
pub fn columns(encrypted: bool) -> Vec<Contender> {
    let mut columns = vec![Contender::Memory, Contender::Sqlite { encrypted }];
    columns.extend(DISTANCES.map(|distance| Contender::Postgres { distance, encrypted }));
    columns
}

/// A table with a column for each contender and a row for each case.
pub fn by_case<'a>(
    page: &mut String,
    encrypted: bool,
    heading: &str,
    rows: impl IntoIterator<Item = (&'a str, &'a Case)>,
    cell: impl Fn(&Case, Contender) -> String,
) {
    let columns = columns(encrypted);
    let names = columns.iter().map(|contender| contender.name().replace(", encrypted", ""));
    let names = names.map(|name| name.replace("PostgreSQL, ", "")).collect::<Vec<_>>();
    writeln!(page, "| {heading} | {} |", names.join(" | ")).unwrap();
    writeln!(page, "|---|{}", "--:|".repeat(columns.len())).unwrap();
    for (name, case) in rows {
        let cells = columns.iter().map(|contender| cell(case, *contender)).collect::<Vec<_>>();
        writeln!(page, "| {name} | {} |", cells.join(" | ")).unwrap();
    }
    page.push('\n');
}

/// A time with three significant digits.
pub fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        seconds if seconds < 1e-3 => (seconds * 1e6, "µs"),
        seconds if seconds < 1.0 => (seconds * 1e3, "ms"),
        seconds => (seconds, "s"),
    };
    format!("{} {unit}", digits(value))
}

pub fn digits(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

/// `1000000` as `1 000 000`.
pub fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}
