//! A round: a server, ways to it, processes that use it, and what is done to them.

mod audit;
mod child;
mod faults;
mod link;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use matrix_sdk_postgres::testing::{PostgresServer, TestDatabase};
use tokio::task::block_in_place;

use self::{child::Child, faults::Harm, link::Link};
use test_support::pooler::{Pooler, Release};

use crate::concurrent::{
    check::{Report, check},
    history::{History, Journal},
    workload::{Task, registers},
};

pub type Server = Arc<Mutex<PostgresServer>>;
pub type Links = Vec<Link>;
pub type Children = Vec<Mutex<Child>>;

/// How long a round takes, without its beginning and its end.
pub const ROUND: Duration = Duration::from_secs(20);

/// How long all rounds take.
pub fn seconds() -> Duration {
    let given = std::env::var("CONCURRENT_SECONDS").ok();
    given.map_or(ROUND, |seconds| Duration::from_secs(seconds.parse().unwrap()))
}

/// The seeds of rounds: one that was given is the first.
pub fn seeds() -> impl Iterator<Item = u64> {
    let given = std::env::var("CONCURRENT_SEED").ok();
    given
        .map(|seed| seed.parse().unwrap())
        .into_iter()
        .chain(std::iter::repeat_with(|| fastrand::u64(..)))
}

/// Runs a round and checks its history, which is kept when something is wrong with it.
pub async fn round(seed: u64, length: Duration) -> (PathBuf, Report, String) {
    let directory = directory(seed);
    println!("concurrent history in {}: CONCURRENT_SEED={seed}", directory.display());
    run(seed, length, &directory).await;
    let (report, told) = block_in_place(|| {
        let history = History::load(&directory);
        let report = check(&history);
        let told = report.tell(&history);
        (report, told)
    });
    if report.violations.is_empty() && !keeps_all() {
        fs::remove_dir_all(&directory).unwrap();
    }
    (directory, report, told)
}

fn keeps_all() -> bool {
    std::env::var("CONCURRENT_KEEP").is_ok_and(|keep| !keep.is_empty())
}

fn directory(seed: u64) -> PathBuf {
    let name = format!("concurrent-{seed}-{}", std::process::id());
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir(&directory).unwrap();
    directory
}

async fn run(seed: u64, length: Duration, directory: &Path) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let server = PostgresServer::builder().setting("synchronous_commit", "on").start().unwrap();
    let database = server.create_database().unwrap();
    let journal = Arc::new(Journal::create(directory, "world"));
    audit::prepare(&database.url(), &journal).await;
    let session = registers::session_of_all().await;

    let (links, pooler, urls) = routes(&server, &database, &mut rng).await;
    let children = urls.iter().enumerate().map(|(number, (url, unprepared, owners))| {
        let (process, directory, url) = (format!("p{number}"), directory.to_owned(), url.clone());
        let (unprepared, owners) = (*unprepared, *owners);
        let (session, seed) = (session.clone(), rng.u64(..));
        let task = Task { process, directory, seed, url, unprepared, owners, session };
        Mutex::new(Child::start(task))
    });
    let children: Children = children.collect();
    let server = Arc::new(Mutex::new(server));
    let (journal, ended) = (journal.clone(), Default::default());
    let harm = Arc::new(Harm { journal, server, links, children, ended });

    let threads = faults::begin(&harm, &mut rng);
    tokio::time::sleep(length).await;
    harm.ended.store(true, SeqCst);
    block_in_place(|| {
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        faults::end(&harm);
        harm.children.iter().for_each(|child| child.lock().unwrap().order_end());
        harm.children.iter().for_each(|child| child.lock().unwrap().end(&harm.journal));
        drop(pooler);
    });
    audit::look(&database.url(), &harm.journal).await;
    drop((database, harm));
}

/// Where the processes go: through a link each, one through a pooler between two links.
async fn routes(
    server: &PostgresServer,
    database: &TestDatabase,
    rng: &mut fastrand::Rng,
) -> (Links, Option<Pooler>, Vec<(String, bool, bool)>) {
    let (mut links, mut urls) = (Vec::new(), Vec::new());
    let url_of = |link: &Link| {
        let direct = format!("127.0.0.1:{}", server.port());
        database.url().replace(&direct, &format!("127.0.0.1:{}", link.port))
    };
    for owners in [true, true, false] {
        let link = Link::to(server.port(), rng.fork()).await;
        urls.push((url_of(&link), false, owners));
        links.push(link);
    }
    let mut running = None;
    // The newer one knows prepared statements.
    let release = if rng.bool() { Release::Old } else { Release::New };
    if release.is_installed() {
        let behind = Link::to(server.port(), rng.fork()).await;
        // It gives up on a server before the store does, and answers in its place.
        let settings = "query_timeout = 1\ndefault_pool_size = 8\nmax_db_connections = 8\n";
        let pooler = Pooler::start_before(release, server, behind.port, settings);
        let before = Link::to(pooler.port, rng.fork()).await;
        urls.push((url_of(&before), matches!(release, Release::Old), true));
        links.extend([behind, before]);
        running = Some(pooler);
    }
    (links, running, urls)
}
