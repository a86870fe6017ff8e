//! The houses of `src/`: data travels one way between them, and the engine knows no store.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Each house may use those before it, and none behind it.
const HOUSES: [&str; 7] =
    ["error", "config", "postgres", "account", "crypto_store", "stores", "admin"];

/// For the tests of this crate and of others; uses nothing of a store.
const APART: &str = "testing";

/// Houses whose rooms use each other one way, too.
const WITH_ROOMS: [&str; 2] = ["postgres", "account"];

/// Names that `lib.rs` exports from the houses.
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

/// The house, and the room in it where that counts, of a path of modules.
fn room(path: &[&str]) -> String {
    match path {
        [house, room, ..] if WITH_ROOMS.contains(house) => format!("{house}::{room}"),
        [house, ..] => (*house).to_owned(),
        [] => String::new(),
    }
}

/// The paths in `a::{b, c::d}`, written out.
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

/// Which rooms each room uses.
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
            let target = exported(path[0]).map_or_else(|| room(&path), ToOwned::to_owned);
            uses.entry(room(modules)).or_default().insert(target);
        }
    }
    uses
}

#[test]
fn data_travels_one_way_between_the_houses() {
    let house = |room: &str| room.split("::").next().unwrap().to_owned();
    let place = |room: &str| HOUSES.iter().position(|name| *name == house(room));
    for (user, used) in uses() {
        for target in used.iter().filter(|target| house(target) != house(&user)) {
            if user == APART {
                assert_eq!(target, "error", "{user} uses {target}");
                continue;
            }
            let (from, to) = (place(&user), place(target));
            assert!(from.is_some() && to.is_some(), "{user} or {target} is no house: name it here");
            assert!(from > to, "{user} uses {target}, which stands behind it");
        }
    }
}

#[test]
fn the_rooms_of_a_house_use_each_other_one_way() {
    let uses = uses();
    let none = BTreeSet::new();
    for start in uses.keys().filter(|room| room.contains("::")) {
        let (mut seen, mut next) = (BTreeSet::new(), vec![start]);
        while let Some(room) = next.pop() {
            for used in uses.get(room).unwrap_or(&none) {
                // A house's own code is above its rooms.
                assert!(used != start || room == start, "{start} uses itself by way of {room}");
                if used.contains("::") && seen.insert(used) {
                    next.push(used);
                }
            }
        }
    }
}

/// Words of a store, beside its tables.
const WORDS_OF_STORES: [&str; 13] = [
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

/// The engine's code, comments and error texts: what they say is true of every store.
#[test]
fn the_engine_does_not_know_the_words_of_a_store() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sql = fs::read_to_string(root.join("migrations/crypto_store/0001_initial.sql")).unwrap();
    let words: Vec<&str> = tables(&sql).chain(WORDS_OF_STORES).collect();
    assert!(words.contains(&"devices") && words.len() > 25, "{words:?}");
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for file in
        ["account", "postgres"].iter().flat_map(|house| sources(&root.join("src").join(house)))
    {
        let text = fs::read_to_string(&file).unwrap().to_lowercase();
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
