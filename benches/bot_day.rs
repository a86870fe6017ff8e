//! A bot's day on every store: `tests/support/src/bot_day` defines its steps, `tests/it/bot_day.rs` counts their
//! round trips, and here they are timed. A day changes its store, and each step is timed separately, which
//! criterion cannot do: in each round of this loop, every contender runs one day.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;

use std::collections::BTreeMap;

use bench::{
    Scale,
    contenders::{Contender, Environment, open_postgres},
    results, runtime,
    statistics::median,
};
use serde::Serialize;
use test_support::{
    bot_day::{BigRoom, Meter, Step, Subject, run},
    proxy::Proxy,
};

/// The results that the report reads.
#[derive(Default, Serialize)]
struct Days {
    /// The names of the steps, in order.
    steps: Vec<&'static str>,
    /// By contender: the seconds of each step, for each day.
    seconds: BTreeMap<String, Vec<Vec<f64>>>,
    /// By step: store calls, round trips, commits.
    costs: Vec<(usize, usize, usize)>,
}

fn main() {
    let scale = Scale::of_this_run();
    let runtime = runtime();
    let _within = runtime.enter();
    let environment = runtime.block_on(Environment::new());
    let big_room = scale.pick(BigRoom::No, BigRoom::No, BigRoom::Yes);
    let mut days = Days::default();
    for round in 0..scale.pick(1, 1, 9) {
        let mut contenders = Contender::of_a_day();
        // The order rotates, so that no contender is always the first.
        let first = round % contenders.len();
        contenders.rotate_left(first);
        for contender in contenders {
            let earlier = days.seconds.entry(contender.name()).or_default();
            // That room takes the SDK's memory store minutes: its time in the first round is every round's.
            let is_known = contender == Contender::Memory && !earlier.is_empty();
            let room = if is_known { BigRoom::No } else { big_room };
            let steps = runtime.block_on(time_day(&environment, contender, room));
            let mut seconds: Vec<f64> = steps.iter().map(|step| step.time.as_secs_f64()).collect();
            match earlier.first() {
                Some(first) => seconds.extend(first.iter().skip(steps.len())),
                None => days.steps = steps.iter().map(|step| step.name).collect(),
            }
            earlier.push(seconds);
        }
    }
    if scale == Scale::Full {
        let steps = runtime.block_on(count_costs(&environment, big_room));
        let costs = |step: &Step| (step.calls, step.round_trips, step.commits);
        days.costs = steps.iter().map(costs).collect();
    }
    print(&days);
    results::write("bot_day", &days);
}

async fn time_day(environment: &Environment, contender: Contender, big_room: BigRoom) -> Vec<Step> {
    let name = environment.new_name();
    let day = if contender == Contender::Memory {
        // A memory store ends with its process, so the same one is used all day.
        let store = environment.open(contender, &name).await.store();
        run(async || Subject::other(store.clone()), Meter::new(None), big_room).await
    } else {
        run(async || environment.open(contender, &name).await, Meter::new(None), big_room).await
    };
    if let Contender::Sqlite { .. } = contender {
        std::fs::remove_dir_all(environment.path(&name)).unwrap();
    }
    day
}

/// Runs the same day and counts its round trips.
async fn count_costs(environment: &Environment, big_room: BigRoom) -> Vec<Step> {
    let proxy = Proxy::counting(environment.address());
    let (url, name) = (environment.url_through(proxy.port()), environment.new_name());
    let open = async || open_postgres(url.clone(), &name, true).await;
    run(open, Meter::new(Some(&proxy)), big_room).await
}

fn print(days: &Days) {
    println!("Milliseconds of a day's steps, medians");
    for (contender, seconds) in &days.seconds {
        println!("{contender}");
        for (index, step) in days.steps.iter().enumerate() {
            let median = median(seconds.iter().map(|day| day[index]).collect());
            println!("{:>10.2}  {step}", median * 1e3);
        }
        let whole = median(seconds.iter().map(|day| day.iter().sum()).collect());
        println!("{:>10.2}  the whole day", whole * 1e3);
    }
}
