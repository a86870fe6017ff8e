//! A round: a server, links to it, processes that use it, and faults.

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

use self::{child::Child, faults::Target, link::Link};
use test_support::pooler::{self, Pooler, Release};

use crate::concurrent::{
    check::{Report, check},
    history::{History, Journal},
    workload::{Task, registers},
};

pub type Server = Arc<Mutex<PostgresServer>>;
pub type Links = Vec<Link>;
pub type Children = Vec<Mutex<Child>>;

/// The length of a round, without set-up and checking.
pub const ROUND: Duration = Duration::from_secs(20);

/// The length of all rounds together.
pub fn seconds() -> Duration {
    let given = std::env::var("CONCURRENT_SECONDS").ok();
    given.map_or(ROUND, |seconds| Duration::from_secs(seconds.parse().unwrap()))
}

/// The seeds of the rounds, beginning with the one in the environment, if any.
pub fn seeds() -> impl Iterator<Item = u64> {
    let given = std::env::var("CONCURRENT_SEED").ok();
    given
        .map(|seed| seed.parse().unwrap())
        .into_iter()
        .chain(std::iter::repeat_with(|| fastrand::u64(..)))
}

/// Runs a round and checks its history, which is kept if it has violations.
pub async fn run(seed: u64, length: Duration) -> (PathBuf, Report, String) {
    let directory = directory(seed);
    println!("concurrent history in {}: CONCURRENT_SEED={seed}", directory.display());
    execute(seed, length, &directory).await;
    let (report, text) = block_in_place(|| {
        let history = History::load(&directory);
        let report = check(&history);
        let text = report.render(&history);
        (report, text)
    });
    if report.violations.is_empty() && !keeps_all() {
        fs::remove_dir_all(&directory).unwrap();
    }
    (directory, report, text)
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

async fn execute(seed: u64, length: Duration, directory: &Path) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let server = PostgresServer::builder().setting("synchronous_commit", "on").start().unwrap();
    let database = server.create_database().unwrap();
    let journal = Arc::new(Journal::create(directory, "round"));
    audit::prepare(&database.url(), &journal).await;
    let session = registers::shared_session().await;

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
    let target = Arc::new(Target { journal, server, links, children, ended });

    let threads = faults::begin(&target, &mut rng);
    tokio::time::sleep(length).await;
    target.ended.store(true, SeqCst);
    block_in_place(|| {
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        faults::end(&target);
        target.children.iter().for_each(|child| child.lock().unwrap().request_end());
        target.children.iter().for_each(|child| child.lock().unwrap().end(&target.journal));
        drop(pooler);
    });
    audit::record(&database.url(), &target.journal).await;
    drop((database, target));
}

/// The URLs of the processes: each leads through a link of its own, one through a pooler between two links.
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
    // Only the newer release supports prepared statements.
    let release = if rng.bool() { Release::Old } else { Release::New };
    if pooler::is_wanted("concurrent histories behind PgBouncer") {
        let behind = Link::to(server.port(), rng.fork()).await;
        // Its time limit is shorter than the store's, so that it sends errors in the server's place.
        let settings = "query_timeout = 1\ndefault_pool_size = 8\nmax_db_connections = 8\n";
        let pooler = Pooler::start_before(release, server, behind.port, settings);
        let before = Link::to(pooler.port, rng.fork()).await;
        urls.push((url_of(&before), matches!(release, Release::Old), true));
        links.extend([behind, before]);
        running = Some(pooler);
    }
    (links, running, urls)
}
