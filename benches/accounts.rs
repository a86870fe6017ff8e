//! Many accounts on one pool: what each costs to open and in memory, and empty syncs of 200 at once.
//!
//! `cargo bench --all-features --bench accounts`; with `--test` once and quickly. The time and the
//! memory of opening are those of a second opening, after all accounts were created.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;

use std::{
    fs,
    time::{Duration, Instant},
};

use bench::{
    Scale,
    accounts::{Accounts, Busy, Opened},
    results,
    statistics::median,
};
use futures_util::{
    StreamExt,
    stream::{self, FuturesUnordered},
};
use matrix_sdk_crypto::{
    OlmMachine,
    store::{CryptoStore, MemoryStore},
};
use matrix_sdk_postgres::{
    PoolSettings, PostgresCryptoStore, PostgresStoreConfig,
    deadpool_postgres::Pool,
    testing::{PostgresServer, TestDatabase},
};
use ruma::{OwnedUserId, UserId};
use test_support::{
    KEY,
    machine::{Relay, SETTINGS, open_machine},
};

const CONNECTIONS: usize = 16;
const BUSY: usize = 200;

/// Accounts of one database, on one pool.
struct Bots {
    config: PostgresStoreConfig,
    pool: Pool,
    _database: TestDatabase,
    server: PostgresServer,
}

impl Bots {
    fn new() -> Self {
        let server = PostgresServer::builder().durable(true).start().unwrap();
        let database = server.create_database().unwrap();
        let config = PostgresStoreConfig::new(database.socket_url(), "first")
            .key(Some(&KEY))
            .pool(PoolSettings { max_size: CONNECTIONS, ..Default::default() });
        let pool = config.build_pool().unwrap();
        Self { config, pool, _database: database, server }
    }

    async fn open(&self, number: usize) -> PostgresCryptoStore {
        let config = self.config.clone().account(format!("bot{number}"));
        PostgresCryptoStore::open_with_pool(self.pool.clone(), &config).await.unwrap()
    }

    /// Creates accounts, and closes them.
    async fn create(&self, accounts: usize) {
        let create = |number| async move { self.open(number).await.close().await.unwrap() };
        create(0).await;
        stream::iter(1..accounts).for_each_concurrent(CONNECTIONS, create).await;
    }

    /// Opens accounts one after the other, up to these numbers, and keeps them open.
    async fn opened(&self, up_to: &[usize]) -> Vec<Opened> {
        let (mut stores, mut seconds, mut figures) = (Vec::new(), Vec::new(), Vec::new());
        // The first one makes the connection.
        stores.push(self.open(0).await);
        let before = resident_bytes();
        for number in 1..up_to.iter().copied().max().unwrap_or_default() {
            let started = Instant::now();
            stores.push(self.open(number).await);
            seconds.push(started.elapsed().as_secs_f64());
            if up_to.contains(&stores.len()) {
                let last = &seconds[seconds.len().saturating_sub(1_000)..];
                figures.push(Opened {
                    accounts: stores.len(),
                    median_seconds: median(last.to_vec()),
                    bytes: (resident_bytes() - before) / number as f64,
                });
            }
        }
        let close = |store: PostgresCryptoStore| async move { store.close().await.unwrap() };
        stream::iter(stores).for_each_concurrent(CONNECTIONS, close).await;
        figures
    }

    /// Seconds of the processor that the server's processes have used, those that have ended included.
    fn server_cpu(&self) -> f64 {
        let parent = self.server.pid().unwrap();
        let all = fs::read_dir("/proc").unwrap().flatten();
        let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let stats = numbers.filter_map(|number: u32| stat(&number.to_string()));
        let ours = stats.filter(|stat| stat.pid == parent || stat.parent == parent);
        ours.map(|stat| if stat.pid == parent { stat.cpu + stat.ended } else { stat.cpu }).sum()
    }
}

/// A process's entry in `/proc`, with its seconds of the processor.
struct Stat {
    pid: u32,
    parent: u32,
    cpu: f64,
    /// Of its children that have ended.
    ended: f64,
}

fn stat(process: &str) -> Option<Stat> {
    // Clock ticks are hundredths of a second on every architecture that Rust runs on.
    const TICKS: f64 = 100.0;
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (pid, others) = text.split_once(' ')?;
    // The program's name, in parentheses, may contain any character.
    let fields: Vec<&str> = others.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field)?.parse::<f64>().ok();
    Some(Stat {
        pid: pid.parse().ok()?,
        parent: fields.get(1)?.parse().ok()?,
        cpu: (ticks(11)? + ticks(12)?) / TICKS,
        ended: (ticks(13)? + ticks(14)?) / TICKS,
    })
}

fn own_cpu() -> f64 {
    stat("self").unwrap().cpu
}

fn resident_bytes() -> f64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<f64>().unwrap() * 1024.0
}

fn user(number: usize) -> OwnedUserId {
    UserId::parse(format!("@bot{number}:example.org")).unwrap()
}

/// Each machine receives empty syncs, all of them at once; returns syncs per second.
async fn sync(machines: &[OlmMachine], relay: &mut Relay, syncs: usize) -> f64 {
    let mut tasks = FuturesUnordered::new();
    let started = Instant::now();
    for machine in machines {
        let machine = machine.clone();
        let syncs: Vec<_> =
            (0..syncs).map(|number| relay.next_sync(&machine, &format!("s{number}"))).collect();
        tasks.push(tokio::spawn(async move {
            for sync in &syncs {
                machine.receive_sync_changes(sync.changes(), &SETTINGS).await.unwrap();
            }
        }));
    }
    while let Some(task) = tasks.next().await {
        task.unwrap();
    }
    (machines.len() * syncs) as f64 / started.elapsed().as_secs_f64()
}

async fn busy(bots: &Bots, accounts: usize, syncs: usize, rounds: usize) -> Busy {
    let mut relay = Relay::default();
    let mut machines = [Vec::new(), Vec::new()];
    for number in 0..accounts {
        let memory = open_machine(&user(number), MemoryStore::new()).await;
        relay.serve(&memory).await;
        machines[0].push(memory);
        let store = open_machine(&user(accounts + number), bots.open(number).await).await;
        relay.serve(&store).await;
        machines[1].push(store);
    }
    let [memory, store] = machines;
    let mut busy = Busy {
        accounts,
        connections: CONNECTIONS,
        memory: Vec::new(),
        store: Vec::new(),
        cpu: Default::default(),
    };
    let each = (accounts * syncs) as f64;
    // The first round warms up.
    for round in 0..=rounds {
        let before = own_cpu();
        let memory_rate = sync(&memory, &mut relay, syncs).await;
        let memory_cpu = (own_cpu() - before) / each;
        let before = (own_cpu(), bots.server_cpu());
        let store_rate = sync(&store, &mut relay, syncs).await;
        let store_cpu = ((own_cpu() - before.0) / each, (bots.server_cpu() - before.1) / each);
        if round > 0 {
            busy.memory.push(memory_rate);
            busy.store.push(store_rate);
            let figures = [memory_cpu, store_cpu.0, store_cpu.1];
            busy.cpu.iter_mut().zip(figures).for_each(|(all, figure)| all.push(figure));
        }
    }
    busy
}

#[tokio::main]
async fn main() {
    let scale = Scale::of_this_run();
    let up_to = scale.pick(&[20][..], &[200], &[2_000, 10_000]);
    let bots = Bots::new();
    bots.create(up_to.iter().copied().max().unwrap_or_default()).await;
    let opened = bots.opened(up_to).await;
    for Opened { accounts, median_seconds, bytes } in &opened {
        let time = Duration::from_secs_f64(*median_seconds);
        println!("{accounts} accounts: opened in {time:?} each, {:.0} kB each", bytes / 1e3);
    }
    let (accounts, syncs, rounds) = scale.pick((20, 2, 1), (BUSY, 5, 3), (BUSY, 20, 9));
    let busy = busy(&bots, accounts, syncs, rounds).await;
    let ([memory, store], ratio) = busy.rates();
    println!(
        "{accounts} busy accounts, {CONNECTIONS} connections: {store:.0} empty syncs a second, the SDK on \
         memory stores {memory:.0}: {ratio:.2}"
    );
    let [memory, store, server] = busy.cpu().map(Duration::from_secs_f64);
    println!(
        "a sync's time of the processor: {store:?}, and {server:?} in the server; on memory stores {memory:?}"
    );
    results::write("accounts", &Accounts { opened, busy });
}
