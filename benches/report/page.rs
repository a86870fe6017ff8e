//! The page, section by section.

use std::{collections::BTreeMap, fmt::Write, path::Path};

use super::{
    readings::{Case, Days},
    tables::{by_case, digits, thousands, time},
};
use crate::{
    bench::{
        accounts::{Accounts, Opened},
        bare::Comparison,
        contenders::{Contender, DISTANCES, DISTANCES_OF_A_DAY, Distance},
        read_rates::ReadRates,
    },
    chart,
};

const SQLITE: Contender = Contender::Sqlite { encrypted: true };

/// Reported separately, as the SDK's memory store takes minutes for this step.
const BIG_ROOM: &str = "key query for 5 000 users";

fn in_small_rooms(step: &str) -> bool {
    !step.starts_with(BIG_ROOM)
}

fn postgres(distance: Distance) -> Contender {
    Contender::Postgres { distance, encrypted: true }
}

/// The contenders of a chart: the encrypted stores, and the one in memory.
fn shown() -> Vec<Contender> {
    super::tables::columns(true)
}

fn chart(
    page: &mut String,
    charts: &Path,
    name: &str,
    title: &str,
    values: impl Fn(Contender) -> f64,
    label: impl Fn(f64) -> String,
) {
    let values: Vec<_> =
        shown().into_iter().map(|contender| (contender, values(contender))).collect();
    chart::bars(&charts.join(format!("{name}.svg")), title, &values, label);
    writeln!(page, "![{title}](benchmarks/{name}.svg)\n").unwrap();
}

pub fn introduction(page: &mut String, quick: bool, machine: &str) {
    let mode = if quick { " --quick" } else { "" };
    write!(
        page,
        "# Benchmarks\n\n\
Written by `scripts/bench{mode}`. The contenders alternate in the same run; figures are medians, \
ratios are medians of the ratios of each round. `scripts/bench --against COMMIT` compares a bot's day with that of \
another commit. \"Missed\" goes by the exact figure.\n\n\
- **PostgreSQL** with its default durability, `fsync` and `synchronous_commit` on: over a Unix socket, \
over TCP, and behind a proxy that makes every round trip 0.5, 1 or 20 ms longer.\n\
- **SQLite** is `matrix-sdk-sqlite` as it is configured by default; it waits for the disk at each \
commit, too. **memory** is the SDK's `MemoryStore`, which keeps nothing.\n\
- *Encrypted*: opened with a passphrase.\n\
- A bot's day is run by the account's owner, which has a cache. Look-ups are made by a read-only store, \
which has none: each of them is a query.\n\n"
    )
    .unwrap();
    if quick {
        page.push_str("A quick run: few rounds, so an indication and not a result.\n\n");
    }
    write!(page, "```text\n{}\n```\n\n", machine.trim()).unwrap();
}

/// The project's aims, and the measured figures.
pub fn aims(
    page: &mut String,
    days: &Days,
    criterion: &BTreeMap<String, Case>,
    bare: &Comparison,
    accounts: &Accounts,
) {
    page.push_str("| aim, encrypted | | measured | |\n|---|---|--:|---|\n");
    let mut row = |aim: &str, limit: &str, measured: &str, is_met: bool| {
        let result = if is_met { "met" } else { "missed" };
        writeln!(page, "| {aim} | {limit} | {measured} | {result} |").unwrap();
    };
    let limits = [(Distance::Millisecond, 0.5), (Distance::Unix, 0.35)];
    for (what, day) in [
        ("a day", days.sum(|_| true)),
        ("a day without the room of 5 000", days.sum(in_small_rooms)),
    ] {
        for (distance, limit) in limits {
            let aim = format!("{what}, {}, relative to SQLite", distance.name());
            let ratio = day.ratio(postgres(distance), SQLITE);
            row(&aim, &format!("at most {limit}"), &digits(ratio), ratio <= limit);
        }
    }
    for (distance, limit) in limits {
        let aim = format!(
            "a day without the room of 5 000, {}, by the SDK's calls alone, relative to SQLite",
            distance.name()
        );
        let ratio = days.sum(in_small_rooms).ratio(Contender::PlainCalls { distance }, SQLITE);
        row(&aim, &format!("at most {limit}"), &digits(ratio), ratio <= limit);
    }
    let ratio = import(criterion).1.ratio(SQLITE, postgres(Distance::Unix));
    let aim = "rate of an import, relative to SQLite";
    row(aim, "at least 1.5", &digits(ratio), ratio >= 1.5);
    let aim = "a look-up, relative to the bare statement followed by the memory store's";
    row(aim, "at most 1.15", &digits(bare.ratio()), bare.ratio() <= 1.15);
    for opened in &accounts.opened {
        let many = thousands(opened.accounts);
        let (aim, seconds) =
            (format!("opening one of {many} accounts, with a key"), opened.median_seconds);
        row(&aim, "at most 2.5 ms", &time(seconds), seconds <= 2.5e-3);
        let (aim, bytes) = (format!("memory of one of {many} accounts"), opened.bytes);
        row(&aim, "at most 40 kB", &format!("{} kB", digits(bytes / 1e3)), bytes <= 40e3);
    }
    let aim =
        format!("syncs of {} accounts at once, relative to memory stores", accounts.busy.accounts);
    let ratio = accounts.busy.rates().1;
    row(&aim, "at least 0.75", &digits(ratio), ratio >= 0.75);
    page.push('\n');
}

pub fn bot_day(page: &mut String, charts: &Path, days: &Days, costs: &[(usize, usize, usize)]) {
    let (whole, small) = (days.sum(|_| true), days.sum(in_small_rooms));
    page.push_str("## A bot's day\n\n");
    let title = "A bot's day, without the room of 5 000";
    chart(page, charts, "bot_day", title, |contender| small.seconds(contender), time);
    write!(
        page,
        "A real `OlmMachine` with 20 friends. On PostgreSQL each sync is one `store.atomically`. \
Opening includes the key derivation from the passphrase. Rounds: {}; the room of 5 000 once on the \
memory store.\n\n",
        days.rounds()
    )
    .unwrap();
    let steps: Vec<_> =
        days.steps.iter().map(|step| (step.as_str(), days.sum(|name| name == step))).collect();
    for encrypted in [true, false] {
        let rows = steps.iter().map(|(name, case)| (*name, case));
        let totals = [("**without the room of 5 000**", &small), ("**the whole day**", &whole)];
        let rows = rows.chain(totals);
        let heading = if encrypted { "encrypted" } else { "not encrypted" };
        by_case(page, encrypted, heading, rows, |case, contender| time(case.seconds(contender)));
    }
    let ratios = |page: &mut String, encrypted| {
        let cell =
            |case: &Case, contender| digits(case.ratio(contender, Contender::Sqlite { encrypted }));
        let heading =
            if encrypted { "times SQLite, encrypted" } else { "times SQLite, not encrypted" };
        let rows = [("without the room of 5 000", &small), ("the whole day", &whole)];
        by_case(page, encrypted, heading, rows, cell);
    };
    ratios(page, true);
    ratios(page, false);
    by_distance(page, &small);
    page.push_str("Round trips and commits, opening connections included:\n\n");
    page.push_str("| step | store calls | round trips | commits |\n|---|--:|--:|--:|\n");
    for (step, (calls, round_trips, commits)) in days.steps.iter().zip(costs) {
        writeln!(page, "| {step} | {calls} | {round_trips} | {commits} |").unwrap();
    }
    page.push('\n');
}

/// `atomically` beside the calls of the SDK alone, and SQLite's day beside both.
fn by_distance(page: &mut String, day: &Case) {
    page.push_str(
        "The day without the room of 5 000, encrypted: each sync as one `store.atomically`, and by the calls of \
the SDK alone, as a `Client` makes them.\n\n\
| round trip to PostgreSQL | SQLite | `atomically` | times SQLite | the SDK's calls alone | times SQLite |\n\
|---|--:|--:|--:|--:|--:|\n",
    );
    for distance in DISTANCES_OF_A_DAY {
        let (scoped, plain) = (postgres(distance), Contender::PlainCalls { distance });
        let [sqlite, scoped_time, plain_time] =
            [SQLITE, scoped, plain].map(|contender| time(day.seconds(contender)));
        let [scoped_ratio, plain_ratio] =
            [scoped, plain].map(|contender| digits(day.ratio(contender, SQLITE)));
        writeln!(
            page,
            "| {} | {sqlite} | {scoped_time} | {scoped_ratio} | {plain_time} | {plain_ratio} |",
            distance.name()
        )
        .unwrap();
    }
    page.push('\n');
}

pub fn look_ups(
    page: &mut String,
    charts: &Path,
    criterion: &BTreeMap<String, Case>,
    bare: &Comparison,
    distances: &BTreeMap<String, f64>,
) {
    page.push_str("## Looking up a room key\n\n");
    let mut sizes: Vec<usize> = criterion
        .keys()
        .filter_map(|name| {
            name.strip_prefix("session_lookup/hit/")?.split('/').next()?.parse().ok()
        })
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    let case = |kind: &str, size: usize, callers: usize| {
        &criterion[&format!("session_lookup/{kind}/{size}/{callers}")]
    };
    let largest = sizes[sizes.len() - 1];
    let title = format!("One look-up among {} room keys", thousands(largest));
    let hit = case("hit", largest, 1);
    chart(page, charts, "session_lookup", &title, |contender| hit.seconds(contender), time);
    for encrypted in [true, false] {
        let heading = if encrypted { "encrypted" } else { "not encrypted" };
        for (callers, title) in
            [(1, "one caller"), (16, "16 concurrent callers, look-ups per second")]
        {
            let mut rows = Vec::new();
            for kind in ["hit", "miss", "wrong room"] {
                for size in &sizes {
                    let name = format!("{kind}, {} keys", thousands(*size));
                    rows.push((name, case(kind, *size, callers)));
                }
            }
            let rows = rows.iter().map(|(name, case)| (name.as_str(), *case));
            by_case(page, encrypted, &format!("{heading}, {title}"), rows, |case, contender| {
                let seconds = case.seconds(contender);
                if callers == 1 { time(seconds) } else { thousands((1.0 / seconds) as usize) }
            });
        }
    }
    writeln!(page, "{}.\n", bare.summary()).unwrap();
    page.push_str("A round trip of the smallest prepared statement on bare tokio-postgres: ");
    let distances = DISTANCES
        .map(|distance| format!("{} {}", distance.name(), time(distances[distance.name()])));
    writeln!(page, "{}.\n", distances.join(", ")).unwrap();
}

pub fn readers(page: &mut String, results: &[ReadRates]) {
    page.push_str(
        "## Many readers\n\n\
Point reads per second of concurrent tasks: on the store, which shares four connections, and with a checkout \
of the pool for each read. Without encryption and decoding.\n\n\
| | tasks | a checkout each | the store | times | four bare connections | times |\n\
|---|--:|--:|--:|--:|--:|--:|\n",
    );
    for rates in results {
        let (medians, [store, bare]) = rates.summary();
        let [checkout, shared, connections] = medians.map(|rate| thousands(rate as usize));
        let (transport, tasks, store, bare) =
            (&rates.transport, rates.tasks, digits(store), digits(bare));
        writeln!(
            page,
            "| {transport} | {tasks} | {checkout} | {shared} | {store} | {connections} | {bare} |"
        )
        .unwrap();
    }
    page.push('\n');
}

pub fn accounts(page: &mut String, results: &Accounts) {
    let Accounts { opened, busy } = results;
    page.push_str(
        "## Many accounts\n\n\
Opened one after the other with a key over a Unix socket, on a pool of the process, after they were created: the \
median time of the last thousand, and what the process takes more for each account. Stores alone, without the SDK's \
machines and with nothing cached.\n\n\
| accounts | opening one | memory for each |\n|--:|--:|--:|\n",
    );
    for Opened { accounts, median_seconds, bytes } in opened {
        let (accounts, kilobytes) = (thousands(*accounts), digits(bytes / 1e3));
        writeln!(page, "| {accounts} | {} | {kilobytes} kB |", time(*median_seconds)).unwrap();
    }
    let ([memory, store], ratio) = busy.rates();
    let [memory_cpu, store_cpu, server_cpu] = busy.cpu().map(time);
    writeln!(
        page,
        "\nEmpty syncs of {} accounts at once, on {} connections: {} a second; the SDK alone, on memory \
stores: {} a second, ratio {}. A sync takes {store_cpu} of the processor's time in the process and \
{server_cpu} in the server, which runs on the same cores; on memory stores {memory_cpu}.\n",
        busy.accounts,
        busy.connections,
        thousands(store as usize),
        thousands(memory as usize),
        digits(ratio),
    )
    .unwrap();
}

/// The number of imported keys, and the case.
fn import(criterion: &BTreeMap<String, Case>) -> (usize, &Case) {
    let found = criterion.iter().find_map(|(name, case)| {
        Some((name.strip_prefix("save_changes/import/")?.parse().ok()?, case))
    });
    found.unwrap()
}

pub fn saving(page: &mut String, charts: &Path, criterion: &BTreeMap<String, Case>) {
    let (count, imported) = import(criterion);
    page.push_str("## Saving\n\n");
    let rate = |contender| count as f64 / imported.seconds(contender);
    let title = format!("Room keys saved in a second, {} in one call", thousands(count));
    chart(page, charts, "save_changes", &title, rate, |rate| thousands(rate as usize));
    let one = &criterion["save_changes/one session/1"];
    let busy = &criterion["save_changes/busy sync/1"];
    let imports = format!("{} imported room keys", thousands(count));
    for encrypted in [true, false] {
        let rows = [
            ("one room key and a token", one),
            ("a busy sync: 20 of each", busy),
            (imports.as_str(), imported),
        ];
        let heading = if encrypted { "encrypted" } else { "not encrypted" };
        by_case(page, encrypted, heading, rows, |case, contender| time(case.seconds(contender)));
        let heading = format!("{heading}, times SQLite");
        by_case(page, encrypted, &heading, rows, |case, contender| {
            digits(case.ratio(contender, Contender::Sqlite { encrypted }))
        });
    }
}

pub fn disk(page: &mut String, pg_test_fsync: Option<String>) {
    page.push_str("## The disk\n\n");
    match pg_test_fsync {
        Some(output) => write!(
            page,
            "A commit waits for the disk once. `pg_test_fsync`, in the directory where the stores \
were:\n\n```text\n{}\n```\n",
            output.trim()
        )
        .unwrap(),
        None => page.push_str("`pg_test_fsync` is not installed on this machine.\n"),
    }
}
