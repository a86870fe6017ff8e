//! The module layout of `src/`: modules use only those below them, and the engine uses no terms of a store.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The top-level modules. Each may use those before it in this list, and none after it.
const TOP_LEVEL: [&str; 7] =
    ["error", "config", "postgres", "account", "crypto_store", "stores", "admin"];

/// A top-level module for tests, which may use `error` only.
const TEST_MODULE: &str = "testing";

/// Modules whose submodules must not have cyclic uses either.
const WITH_SUBMODULES: [&str; 2] = ["postgres", "account"];

/// The modules of names that `lib.rs` exports.
fn exported(name: &str) -> Option<&'static str> {
    Some(match name {
        "DatabaseError" | "Error" | "OpenStoreError" => "error",
        "Access"
        | "OwnershipSettings"
        | "PoolSettings"
        | "PostgresStoreConfig"
        | "Takeover"
        | "Timeouts" => "config",
        "Transaction" => "account::write",
        "PostgresCryptoStore" => "crypto_store",
        "PostgresStores" => "stores",
        _ => return None,
    })
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let mut files: Vec<_> =
        files.into_iter().filter(|file| file.extension().is_some_and(|end| end == "rs")).collect();
    files.extend(folders.iter().flat_map(|folder| sources(folder)));
    files
}

/// The top-level module of a path, with the submodule where that is checked.
fn module(path: &[&str]) -> String {
    match path {
        [top, sub, ..] if WITH_SUBMODULES.contains(top) => format!("{top}::{sub}"),
        [top, ..] => (*top).to_owned(),
        [] => String::new(),
    }
}

/// The single paths in `a::{b, c::d}`.
fn paths(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((head, inner)) = tree.split_once('{') else { return vec![tree.to_owned()] };
    let inner = inner.strip_suffix('}').unwrap();
    let mut depth = 0;
    let items = inner.split(|c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    let items = items.filter(|item| !item.trim().is_empty());
    items.flat_map(paths).map(|path| format!("{head}{path}")).collect()
}

/// The modules that each module uses.
fn uses() -> BTreeMap<String, BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in sources(&root) {
        let modules = file.strip_prefix(&root).unwrap().with_extension("");
        let modules: Vec<&str> = modules.iter().map(|part| part.to_str().unwrap()).collect();
        if modules == ["lib"] {
            continue;
        }
        let modules = modules.strip_suffix(&["mod"]).unwrap_or(&modules);
        let text = fs::read_to_string(&file).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let code = code.collect::<Vec<_>>().join("\n").replace("pub(in crate::", "pub(in ");
        let imports = code.split("use crate::").skip(1);
        let used = imports.flat_map(|rest| paths(rest.split(';').next().unwrap()));
        let inline = code.split("crate::").skip(1);
        let is_path = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let inline = inline.map(|rest| rest.split(|c| !is_path(c)).next().unwrap().to_owned());
        let used: Vec<String> = used.chain(inline.filter(|path| !path.is_empty())).collect();
        for path in used {
            let path: Vec<&str> = path.split("::").map(str::trim).collect();
            let target = exported(path[0]).map_or_else(|| module(&path), ToOwned::to_owned);
            uses.entry(module(modules)).or_default().insert(target);
        }
    }
    uses
}

#[test]
fn modules_use_only_those_below_them() {
    let top_level = |module: &str| module.split("::").next().unwrap().to_owned();
    let position = |module: &str| TOP_LEVEL.iter().position(|name| *name == top_level(module));
    for (user, used) in uses() {
        for target in used.iter().filter(|target| top_level(target) != top_level(&user)) {
            if user == TEST_MODULE {
                assert_eq!(target, "error", "{user} uses {target}");
                continue;
            }
            let (from, to) = (position(&user), position(target));
            assert!(
                from.is_some() && to.is_some(),
                "add {user} or {target} to TOP_LEVEL in tests/it/layout.rs"
            );
            assert!(from > to, "{user} uses {target}, which is above it");
        }
    }
}

#[test]
fn submodules_have_no_cyclic_uses() {
    let uses = uses();
    let none = BTreeSet::new();
    for start in uses.keys().filter(|module| module.contains("::")) {
        let (mut seen, mut next) = (BTreeSet::new(), vec![start]);
        while let Some(module) = next.pop() {
            for used in uses.get(module).unwrap_or(&none) {
                // A module's own code is above its submodules.
                assert!(
                    used != start || module == start,
                    "cycle: {start} uses itself through {module}"
                );
                if used.contains("::") && seen.insert(used) {
                    next.push(used);
                }
            }
        }
    }
}

/// Terms of a store, in addition to the names of its tables.
const TERMS_OF_STORES: [&str; 13] = [
    "matrix_sdk_crypto",
    "matrix_sdk_base",
    "olm",
    "olmmachine",
    "megolm",
    "ratchet",
    "ratchets",
    "room key",
    "room keys",
    "postgrescryptostore",
    "the sdk",
    "undecryptable",
    "machine",
];

/// The tables that a file of migrations creates.
fn tables(sql: &str) -> impl Iterator<Item = &str> {
    let created = sql.split("CREATE TABLE {schema}.").skip(1);
    created.filter_map(|rest| rest.split([' ', '(']).next())
}

/// The engine's code, comments and error texts apply to every store.
#[test]
fn the_engine_uses_no_terms_of_a_store() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sql = fs::read_to_string(root.join("migrations/crypto_store/0001_initial.sql")).unwrap();
    let words: Vec<&str> = tables(&sql).chain(TERMS_OF_STORES).collect();
    assert!(words.contains(&"devices") && words.len() > 25, "{words:?}");
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for file in ["account", "postgres"]
        .iter()
        .flat_map(|top_level| sources(&root.join("src").join(top_level)))
    {
        // A file of the operating system.
        let text = fs::read_to_string(&file).unwrap().to_lowercase().replace("/machine-id", "");
        for (number, line) in text.lines().enumerate() {
            let uses = |word: &&&str| {
                line.match_indices(**word).any(|(at, _)| {
                    !line[..at].ends_with(is_word) && !line[at + word.len()..].starts_with(is_word)
                })
            };
            let used = words.iter().filter(uses);
            found.extend(used.map(|word| format!("{}:{}: {word}", file.display(), number + 1)));
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}
