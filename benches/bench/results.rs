//! Result files for the report.

use std::path::PathBuf;

use serde::{Serialize, de::DeserializeOwned};

/// The directory of the results, set by `scripts/bench`.
pub fn directory() -> Option<PathBuf> {
    std::env::var_os("BENCH_RESULTS").map(PathBuf::from)
}

/// Writes a result for the report, if there is to be one.
pub fn write(name: &str, result: &impl Serialize) {
    if let Some(directory) = directory() {
        std::fs::create_dir_all(&directory).unwrap();
        let text = serde_json::to_string_pretty(result).unwrap();
        std::fs::write(directory.join(format!("{name}.json")), text).unwrap();
    }
}

pub fn read<T: DeserializeOwned>(name: &str) -> Option<T> {
    let path = directory()?.join(format!("{name}.json"));
    Some(serde_json::from_str(&std::fs::read_to_string(path).ok()?).unwrap())
}
