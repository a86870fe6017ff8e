//! Every link in the repository's pages leads somewhere, and the README's do so on docs.rs too.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use test_support::pages::{anchors, prose};

const README: &str = include_str!("../../../README.md");
const LIBRARY: &str = include_str!("../../../src/lib.rs");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages, below the root.
fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for directory in ["", "docs", "examples/webhook_bridge", "migrations", "scripts", "tests"] {
        for entry in fs::read_dir(root().join(directory)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    assert!(pages.len() > 8, "{pages:?}");
    pages
}

/// The targets of inline links, and of link definitions.
fn targets(page: &str) -> Vec<String> {
    let prose = prose(page);
    let inline = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let defined = definitions(&prose).into_values();
    inline.map(ToOwned::to_owned).chain(defined).collect()
}

fn definitions(page: &str) -> BTreeMap<String, String> {
    let lines = page.lines().filter_map(|line| line.strip_prefix('[')?.split_once("]: "));
    lines.map(|(name, target)| (name.to_owned(), target.to_owned())).collect()
}

/// Why a relative link of a page leads nowhere.
fn fault(page: &Path, target: &str) -> Option<String> {
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let file = match path {
        "" => page.to_owned(),
        path => page.parent().unwrap().join(path),
    };
    if !file.exists() {
        return Some(format!("{} does not exist", file.display()));
    }
    if anchor.is_empty() {
        return None;
    }
    let anchors = anchors(&fs::read_to_string(&file).unwrap());
    (!anchors.contains(anchor)).then(|| format!("{} has no heading #{anchor}", file.display()))
}

#[test]
fn relative_links_lead_to_files_and_headings() {
    let mut count = 0;
    let mut faults = Vec::new();
    for page in pages() {
        for target in targets(&fs::read_to_string(&page).unwrap()) {
            if !target.contains("://") {
                count += 1;
                faults.extend(
                    fault(&page, &target).map(|fault| format!("{}: {fault}", page.display())),
                );
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    assert!(count > 60, "{count}");
}

/// docs.rs resolves no relative link: the crate's page defines each of the README's before the README does.
#[test]
fn the_readmes_links_are_defined_for_docs_rs() {
    let readme: BTreeMap<_, _> =
        definitions(README).into_iter().filter(|(_, target)| !target.contains("://")).collect();
    let mut library = BTreeMap::new();
    for line in LIBRARY.lines().filter_map(|line| line.strip_prefix("#![doc = concat!(\"[")) {
        let parts: Vec<&str> = line.split('"').collect();
        let [name, .., path, _] = parts[..] else { panic!("{line}") };
        assert!(line.contains("env!(\"CARGO_PKG_REPOSITORY\")"), "{line}");
        let (name, path) = (name.trim_end_matches("]: "), path.trim_start_matches('/'));
        library.insert(name.to_owned(), path.to_owned());
    }
    assert_eq!(library, readme);
    assert!(readme.len() > 8, "{readme:?}");
    // An inline link has no name that could be defined before.
    let inline: Vec<_> = prose(README)
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next().map(ToOwned::to_owned))
        .filter(|target| !target.contains("://") && !target.starts_with('#'))
        .collect();
    assert!(inline.is_empty(), "the README links inline: {inline:?}");
}

/// RELEASING.md names the placeholder, and the files in which it is replaced.
#[test]
fn the_repository_is_a_placeholder_that_the_release_replaces() {
    let repository = env!("CARGO_PKG_REPOSITORY");
    let releasing = fs::read_to_string(root().join("RELEASING.md")).unwrap();
    assert!(releasing.contains(repository), "RELEASING.md does not name {repository}");
    let replaced = releasing.lines().find(|line| line.starts_with("sed -i")).unwrap();
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let name = page.strip_prefix(root()).unwrap().to_str().unwrap();
        assert!(!text.contains(repository) || replaced.contains(name), "{name} names {repository}");
    }
}
