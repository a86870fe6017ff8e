//! Compares the days of two commits, which `scripts/bench --against` has run in turns: for each contender and
//! step the median of the turns' ratios, this commit's time to the other's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use bench::statistics::{median, median_ratio};
use serde::Deserialize;

/// The result of one turn: one day of each contender.
#[derive(Deserialize)]
struct Turn {
    steps: Vec<String>,
    seconds: BTreeMap<String, Vec<Vec<f64>>>,
}

/// The seconds of each contender's steps, by turn.
#[derive(Default)]
struct Days {
    contenders: Vec<String>,
    steps: Vec<String>,
    seconds: HashMap<(String, String), Vec<f64>>,
}

const WHOLE: &str = "the whole day";

impl Days {
    /// Reads `TURN/SIDE/bot_day.json` of all turns, in order.
    fn read(directory: &Path, side: &str) -> Self {
        let mut days = Self::default();
        for number in 1.. {
            let path = directory.join(format!("{number}/{side}/bot_day.json"));
            let Ok(text) = fs::read_to_string(path) else { return days };
            days.add(serde_json::from_str(&text).unwrap());
        }
        days
    }

    fn add(&mut self, turn: Turn) {
        for (contender, rounds) in &turn.seconds {
            for day in rounds {
                let whole = (WHOLE, day.iter().sum());
                let steps = turn.steps.iter().map(String::as_str).zip(day.iter().copied());
                for (step, seconds) in steps.chain([whole]) {
                    let key = (contender.clone(), step.to_owned());
                    self.seconds.entry(key).or_default().push(seconds);
                }
            }
        }
        self.contenders = turn.seconds.into_keys().collect();
        self.steps = turn.steps;
        self.steps.push(WHOLE.to_owned());
    }

    fn of(&self, contender: &str, step: &str) -> Option<&Vec<f64>> {
        self.seconds.get(&(contender.to_owned(), step.to_owned()))
    }
}

fn main() {
    let Some(directory) = std::env::var_os("BENCH_AGAINST").map(PathBuf::from) else {
        println!("Nothing to compare: scripts/bench --against COMMIT sets BENCH_AGAINST.");
        return;
    };
    let (this, that) = (Days::read(&directory, "this"), Days::read(&directory, "that"));
    for contender in &this.contenders {
        if that.of(contender, WHOLE).is_none() {
            println!("\n{contender}: not in the other commit");
            continue;
        }
        println!("\n{contender}\n{:>7} {:>11} {:>11}  step", "ratio", "this", "that");
        for step in &this.steps {
            let Some(now) = this.of(contender, step) else { continue };
            match that.of(contender, step) {
                Some(before) => println!(
                    "{:>7.2} {} {}  {step}",
                    median_ratio(now, before),
                    milliseconds(now),
                    milliseconds(before)
                ),
                None => println!("{:>7} {} {:>11}  {step}", "", milliseconds(now), ""),
            }
        }
    }
    let turns = this.contenders.first().and_then(|contender| this.of(contender, WHOLE));
    println!("\nMedians of {} turns; a ratio below 1 is faster.", turns.map_or(0, Vec::len));
}

fn milliseconds(seconds: &[f64]) -> String {
    format!("{:>8.2} ms", median(seconds.to_vec()) * 1e3)
}
