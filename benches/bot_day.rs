//! A bot's day on every store: `tests/support/src/bot_day` tells it, `tests/it/bot_day.rs` counts it. Here it
//! is timed. A day changes the store it is lived on, and each step counts by itself, so this is a loop
//! of our own and not criterion's: each round, every contender lives one day.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;

use std::collections::BTreeMap;

use bench::{
    Scale,
    contenders::{Contender, Place, open_postgres},
    results, runtime,
    statistics::median,
};
use serde::Serialize;
use test_support::{
    bot_day::{BigRoom, Meter, Step, Subject, live},
    proxy::Proxy,
};

/// What the report reads.
#[derive(Default, Serialize)]
struct Days {
    /// In the order of the day.
    steps: Vec<&'static str>,
    /// Of each contender, the seconds of each step, day by day.
    seconds: BTreeMap<String, Vec<Vec<f64>>>,
    /// Of each step: store calls, round trips, commits.
    costs: Vec<(usize, usize, usize)>,
}

fn main() {
    let scale = Scale::of_this_run();
    let runtime = runtime();
    let _within = runtime.enter();
    let place = runtime.block_on(Place::new());
    let big_room = scale.pick(BigRoom::No, BigRoom::No, BigRoom::Yes);
    let mut days = Days::default();
    for round in 0..scale.pick(1, 1, 9) {
        let mut contenders = Contender::all();
        // Nobody is always the first.
        let first = round % contenders.len();
        contenders.rotate_left(first);
        for contender in contenders {
            let steps = runtime.block_on(lived_on(&place, contender, big_room));
            let seconds = steps.iter().map(|step| step.time.as_secs_f64()).collect();
            days.seconds.entry(contender.name()).or_default().push(seconds);
            days.steps = steps.iter().map(|step| step.name).collect();
        }
    }
    if scale == Scale::Full {
        let steps = runtime.block_on(counted(&place, big_room));
        let costs = |step: &Step| (step.calls, step.round_trips, step.commits);
        days.costs = steps.iter().map(costs).collect();
    }
    print(&days);
    results::write("bot_day", &days);
}

async fn lived_on(place: &Place, contender: Contender, big_room: BigRoom) -> Vec<Step> {
    let name = place.new_name();
    let day = if contender == Contender::Memory {
        // The process's end would be the memory's.
        let store = place.open(contender, &name).await.store();
        live(async || Subject::other(store.clone()), Meter::new(None), big_room).await
    } else {
        live(async || place.open(contender, &name).await, Meter::new(None), big_room).await
    };
    if let Contender::Sqlite { .. } = contender {
        std::fs::remove_dir_all(place.path(&name)).unwrap();
    }
    day
}

/// The same day, its round trips counted.
async fn counted(place: &Place, big_room: BigRoom) -> Vec<Step> {
    let proxy = Proxy::counting(place.address());
    let (url, name) = (place.url_through(proxy.port()), place.new_name());
    let open = async || open_postgres(url.clone(), &name, true).await;
    live(open, Meter::new(Some(&proxy)), big_room).await
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
