//! Text that others chose, for logs and terminals.

/// Without control characters, and of limited length.
pub fn shortened(text: &str) -> String {
    text.chars().filter(|one| !one.is_control()).take(200).collect()
}

/// With escapes for what does not print, such as line feeds, tabs, control sequences of terminals and
/// changes of the writing direction.
pub fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for one in text.chars() {
        match one {
            '"' | '\'' | '\\' => printable.push(one),
            _ => printable.extend(one.escape_debug()),
        }
    }
    printable
}
