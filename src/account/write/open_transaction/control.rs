//! Statements of the application that would end the transaction.

/// Whether a statement ends the transaction, unlike `ROLLBACK TO SAVEPOINT`. A message holds one
/// statement only, so its first words identify it.
pub(super) fn ends_transaction(sql: &str) -> bool {
    let mut rest = sql;
    let mut word = || next_word(&mut rest);
    match word().as_str() {
        "COMMIT" | "END" | "ABORT" => true,
        "PREPARE" => word() == "TRANSACTION",
        "ROLLBACK" => {
            let second = word();
            let is_noise = ["WORK", "TRANSACTION"].contains(&second.as_str());
            (if is_noise { word() } else { second }) != "TO"
        }
        _ => false,
    }
}

/// Removes and returns the next word, in upper case; skips what precedes it, such as comments,
/// which may be nested.
fn next_word(rest: &mut &str) -> String {
    let mut depth = 0;
    loop {
        if let Some(after) = rest.strip_prefix("/*") {
            (depth, *rest) = (depth + 1, after);
        } else if let Some(after) = rest.strip_prefix("*/") {
            (depth, *rest) = (depth - 1, after);
        } else if depth == 0
            && let Some(after) = rest.strip_prefix("--")
        {
            *rest = after.split_once(['\n', '\r']).map_or("", |(_, after)| after);
        } else {
            let mut characters = rest.chars();
            match characters.next() {
                None => return String::new(),
                Some(first) if depth == 0 && first.is_ascii_alphabetic() => break,
                Some(_) => *rest = characters.as_str(),
            }
        }
    }
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    let (word, after) = rest.split_at(end);
    *rest = after;
    word.to_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use super::ends_transaction;

    #[test]
    fn only_what_ends_the_transaction_is_refused() {
        for sql in [
            "COMMIT",
            " commit;",
            ";COMMIT",
            "END",
            "end work",
            "ABORT",
            "ROLLBACK",
            "rollback transaction",
            "ROLLBACK AND CHAIN",
            "PREPARE TRANSACTION 'x'",
            "/* a /* nested */ comment */ COMMIT",
            "-- a line\nROLLBACK",
            "-- a line\rCOMMIT",
        ] {
            assert!(ends_transaction(sql), "{sql}");
        }
        for sql in [
            "",
            "SELECT 'COMMIT'",
            "ROLLBACK TO a",
            "ROLLBACK TO SAVEPOINT a",
            "rollback/**/work to a",
            "ROLLBACK TRANSACTION TO SAVEPOINT a",
            "PREPARE statement AS SELECT 1",
            "SAVEPOINT a",
            "/* COMMIT */ SELECT 1",
            "-- COMMIT",
            "ENDLESS",
        ] {
            assert!(!ends_transaction(sql), "{sql}");
        }
    }
}
