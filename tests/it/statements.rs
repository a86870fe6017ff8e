//! The text of every statement. `tests/golden/statements.sql` lists them, so that a change shows as a diff;
//! `UPDATE_GOLDEN=1` rewrites it. The texts are also searched for forbidden constructs.
use std::fmt::Write;

use matrix_sdk_postgres::PostgresStores;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/statements.sql");

const SCHEMA: &str = "bots";

/// Statements that write before an account has an owner.
const WITHOUT_OWNER: [&str; 2] = ["accounts.insert", "accounts.insert_next"];

const VOLATILE: [&str; 7] = [
    "now(",
    "clock_timestamp(",
    "statement_timestamp(",
    "random(",
    "gen_random_uuid(",
    "nextval(",
    "set_config(",
];

#[test]
fn every_text_is_in_the_golden_file() {
    let mut listed = String::new();
    for (name, text, types) in PostgresStores::statement_texts(SCHEMA).unwrap() {
        let types: Vec<_> = types.iter().map(ToString::to_string).collect();
        writeln!(listed, "-- {name} ({})\n{};\n", types.join(", "), text.trim()).unwrap();
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(GOLDEN, &listed).unwrap();
    }
    let golden = std::fs::read_to_string(GOLDEN).unwrap_or_default();
    assert_eq!(listed, golden, "statements changed; UPDATE_GOLDEN=1 accepts them");
}

/// The name begins with the table's, and appears in errors and traces.
#[test]
fn every_statement_has_a_name_of_its_own() {
    let texts = PostgresStores::statement_texts(SCHEMA).unwrap();
    let mut names: Vec<_> = texts.iter().map(|(name, ..)| *name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    assert!(names.iter().all(|name| name.split('.').count() == 2), "{names:?}");
}

/// By it, the server's views tell the statements apart.
#[test]
fn every_text_has_its_name_as_a_comment_behind_the_first_word() {
    for (name, text, _) in PostgresStores::statement_texts(SCHEMA).unwrap() {
        let (_, others) = text.split_once(' ').unwrap();
        assert!(others.starts_with(&format!("/* {name} */ ")), "{text}");
    }
}

#[test]
fn no_statement_has_a_forbidden_construct() {
    let mut found = Vec::new();
    for (name, text, _) in PostgresStores::statement_texts(SCHEMA).unwrap() {
        found.extend(faults(name, &text).into_iter().map(|fault| format!("{name}: {fault}")));
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// The forbidden constructs in a statement.
fn faults(name: &str, text: &str) -> Vec<&'static str> {
    let has_owner = !WITHOUT_OWNER.contains(&name);
    let text = &text.replacen(&format!("/* {name} */ "), "", 1);
    let is_insert = text.contains("INSERT INTO");
    let is_write = is_insert || text.starts_with("UPDATE") || text.starts_with("DELETE");
    let asks_marker = text.contains("current_setting('matrix_sdk.tx') = $1::text");
    let guards_itself = text.contains(".guard(");
    let rules = [
        (
            text.contains("current_setting('matrix_sdk.tx',"),
            "reads the transaction marker with missing_ok: without it, a write must be an error",
        ),
        (
            is_write && has_owner && !asks_marker && !guards_itself,
            "writes without checking the transaction marker",
        ),
        (
            is_insert && has_owner && !takes_rows_through_owner(text),
            "inserts rows that do not come through the owner's row",
        ),
        (
            sub_selects(text)
                .any(|text| text.split("account_id = ").skip(1).any(|at| !at.starts_with("$1"))),
            "has a sub-select by an outer row's account_id: name $1",
        ),
        (
            effects(text).any(|text| VOLATILE.iter().any(|function| text.contains(function))),
            "calls a volatile function in UPDATE, DO UPDATE or RETURNING",
        ),
    ];
    rules.into_iter().filter(|(is_broken, _)| *is_broken).map(|(_, fault)| fault).collect()
}

fn takes_rows_through_owner(text: &str) -> bool {
    let through = ["SELECT o.account_id,", ".account_owners o", "o.account_id = $1"];
    through.iter().all(|part| text.contains(part)) && !text.contains("VALUES")
}

/// The texts between `(SELECT` and its closing parenthesis.
fn sub_selects(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("(SELECT").map(|(start, _)| {
        let mut depth = 0;
        let end = text[start..].find(|c| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            depth == 0
        });
        &text[start..end.map_or(text.len(), |end| start + end)]
    })
}

/// The text after SET of an UPDATE, and after DO UPDATE and RETURNING.
fn effects(text: &str) -> impl Iterator<Item = &str> {
    let update = text.starts_with("UPDATE").then_some(text);
    let behind = |word| text.split_once(word).map(|(_, behind)| behind);
    update.into_iter().chain(behind("DO UPDATE")).chain(behind("RETURNING"))
}

/// Tests `faults()` itself.
#[test]
fn each_fault_is_found() {
    let good = "INSERT /* t.upsert */ INTO b.t (account_id, v) SELECT o.account_id, u.v \
        FROM b.account_owners o CROSS JOIN unnest($2) AS u (v) \
        WHERE o.account_id = $1 AND current_setting('matrix_sdk.tx') = $1::text \
        ON CONFLICT (account_id) DO UPDATE SET v = excluded.v";
    assert_eq!(faults("t.upsert", good), Vec::<&str>::new());
    for (from, to, fault) in [
        ("'matrix_sdk.tx')", "'matrix_sdk.tx', true)", "missing_ok"),
        ("AND current_setting('matrix_sdk.tx') = $1::text", "", "without checking"),
        ("SELECT o.account_id", "SELECT $1", "through the owner"),
        ("u.v FROM", "(SELECT 1 FROM b.t WHERE t.account_id = o.account_id) FROM", "sub-select"),
        ("excluded.v", "now()", "volatile"),
    ] {
        let found = faults("t.upsert", &good.replace(from, to));
        assert!(found.iter().any(|text| text.contains(fault)), "{fault} is not in {found:?}");
    }
}
