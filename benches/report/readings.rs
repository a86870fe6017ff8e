//! The results of the benchmarks.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

use crate::bench::{
    contenders::Contender,
    statistics::{median, median_ratio},
};

/// Seconds of one case, by contender and round.
#[derive(Default)]
pub struct Case(BTreeMap<String, BTreeMap<usize, f64>>);

impl Case {
    pub fn add(&mut self, contender: String, round: usize, seconds: f64) {
        self.0.entry(contender).or_default().insert(round, seconds);
    }

    fn rounds(&self, contender: Contender) -> Vec<f64> {
        self.0.get(&contender.name()).map(|rounds| rounds.values().copied().collect()).unwrap()
    }

    pub fn seconds(&self, contender: Contender) -> f64 {
        median(self.rounds(contender))
    }

    /// The ratio to the time of `other`: the median of the ratios of each round.
    pub fn ratio(&self, contender: Contender, other: Contender) -> f64 {
        median_ratio(&self.rounds(contender), &self.rounds(other))
    }
}

/// Criterion's results, by the name of the case.
pub fn criterion(directory: &Path) -> BTreeMap<String, Case> {
    let mut cases: BTreeMap<String, Case> = BTreeMap::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        let path = |name: &str| directory.join(name);
        if directory.ends_with("new") && path("estimates.json").is_file() {
            let (benchmark, estimates) =
                (json(path("benchmark.json")), json(path("estimates.json")));
            let text = |field: &str| benchmark[field].as_str().unwrap().to_owned();
            let seconds = estimates["median"]["point_estimate"].as_f64().unwrap() / 1e9;
            let round = text("value_str").parse().unwrap();
            cases.entry(text("group_id")).or_default().add(text("function_id"), round, seconds);
            continue;
        }
        for entry in fs::read_dir(&directory).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                directories.push(entry.path());
            }
        }
    }
    cases
}

fn json(path: PathBuf) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The results of `bot_day`.
#[derive(Deserialize)]
pub struct Days {
    pub steps: Vec<String>,
    seconds: BTreeMap<String, Vec<Vec<f64>>>,
    pub costs: Vec<(usize, usize, usize)>,
}

impl Days {
    /// The sum of the wanted steps.
    pub fn sum(&self, wanted: impl Fn(&str) -> bool) -> Case {
        let mut case = Case::default();
        for (contender, days) in &self.seconds {
            for (round, day) in days.iter().enumerate() {
                let steps = self.steps.iter().zip(day).filter(|(step, _)| wanted(step));
                case.add(contender.clone(), round, steps.map(|(_, seconds)| seconds).sum());
            }
        }
        case
    }

    pub fn rounds(&self) -> usize {
        self.seconds.values().map(Vec::len).max().unwrap_or_default()
    }
}
