//! Heartbeats show whether an owner is alive, by the server's clock: one for each server, schema
//! and runtime that the process uses.

use std::{
    collections::HashMap,
    sync::{
        Arc, LazyLock, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use deadpool_postgres::ClientWrapper;
use tokio::{
    runtime::{Handle, Id},
    sync::Notify,
    task::JoinHandle,
    time::timeout,
};
use tokio_postgres::types::Type;
use tracing::debug;

use crate::{
    Error,
    account::ownership::{
        Evidence, Interval, LaneRow, Moment, Owner, OwnershipState, lock, process::Process,
        random_id,
    },
    postgres::{
        database::{Database, Param, Target},
        metrics,
        statement::Sql,
    },
};

/// A heartbeat counts as alive for this many intervals.
const LIFETIME: u32 = 3;

/// How many other owners' credentials a heartbeat tries when its own are refused.
const OTHER_LOGINS: usize = 8;

static RENEW: Sql = Sql::new(
    "heartbeats.renew",
    "
SELECT account_id, token, lane, commits, maintenance FROM {schema}.renew_heartbeat($1, $2, $3)",
    &[Type::BYTEA, Type::FLOAT8, Type::INT8_ARRAY],
);

static RELEASE: Sql = Sql::new(
    "account_handles.release",
    "SELECT {schema}.release($1, $2)",
    &[Type::INT8, Type::BYTEA],
);

pub(crate) const STATEMENTS: &[&Sql] = &[&RENEW, &RELEASE];

/// Identifies a heartbeat: how the server is reached (stored values are the same in a copy of the
/// database), the schema, and the runtime (the task ends with it).
type Key = (Target, String, Id);

static HEARTBEATS: LazyLock<Mutex<HashMap<Key, Weak<Heartbeat>>>> = LazyLock::new(Mutex::default);

/// The heartbeat in one database, as long as one of its accounts is open.
pub(crate) struct Heartbeat {
    id: [u8; 16],
    /// As the heartbeat's row describes it.
    process: Process,
    database: Database,
    owners: Mutex<Vec<Member>>,
    interval: Arc<Interval>,
    /// Wakes the task when a shorter interval is registered.
    interval_shortened: Arc<Notify>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// An account that shares the heartbeat.
struct Member {
    owner: Weak<Owner>,
    /// The account's own connections.
    database: Database,
}

/// The `account_handles` row of an open account. Deleted when dropped: then its owner no longer
/// counts as alive.
pub(crate) struct HandleRow {
    database: Database,
    account_id: i64,
    id: [u8; 16],
    released: AtomicBool,
    runtime: Handle,
}

/// An account that is open in this process, and its heartbeat.
pub(crate) struct Presence {
    heartbeat: Arc<Heartbeat>,
    handle_row: HandleRow,
}

impl Presence {
    pub(crate) fn new(
        heartbeat: Arc<Heartbeat>,
        handle_row: HandleRow,
        owner: &Arc<Owner>,
        interval: Duration,
    ) -> Self {
        heartbeat.join(owner, &handle_row.database, interval);
        Self { heartbeat, handle_row }
    }

    /// Whether the heartbeat's task is running: it ends with its runtime.
    pub(crate) fn has_running_heartbeat(&self) -> bool {
        lock(&self.heartbeat.task).as_ref().is_some_and(|task| !task.is_finished())
    }

    /// Releases the account, so that the next opener need not wait.
    pub(crate) async fn release(&self) {
        if !self.handle_row.released.swap(true, Ordering::AcqRel) {
            let HandleRow { database, account_id, id, .. } = &self.handle_row;
            release(database, *account_id, *id).await;
        }
    }
}

impl HandleRow {
    pub(crate) fn new(database: &Database, account_id: i64, id: [u8; 16]) -> Self {
        let (database, released) = (database.clone(), AtomicBool::new(false));
        Self { database, account_id, id, released, runtime: Handle::current() }
    }
}

impl Drop for HandleRow {
    fn drop(&mut self) {
        if !self.released.swap(true, Ordering::AcqRel) {
            let (database, account_id, id) = (self.database.clone(), self.account_id, self.id);
            // Has no effect when the runtime has ended: then the heartbeat has ended with it.
            self.runtime.spawn(async move { release(&database, account_id, id).await });
        }
    }
}

async fn release(database: &Database, account_id: i64, id: [u8; 16]) {
    metrics::ownership("released");
    if let Err(error) = database.write_autocommit(&RELEASE, &[&account_id, &id.as_slice()]).await {
        debug!(%error, "the account could not be released: it is free when its heartbeat expires");
    }
}

impl Heartbeat {
    /// The heartbeat of this database in this runtime. It starts with the first owner that joins.
    pub(crate) fn of(database: &Database) -> Arc<Self> {
        let schema = database.statements().schema().name().to_owned();
        let key = (database.target().clone(), schema, Handle::current().id());
        let mut heartbeats = lock(&HEARTBEATS);
        heartbeats.retain(|_, heartbeat| heartbeat.strong_count() > 0);
        if let Some(heartbeat) = heartbeats.get(&key).and_then(Weak::upgrade) {
            return heartbeat;
        }
        let heartbeat = Arc::new(Self {
            id: random_id(),
            process: Process::current(),
            database: database.clone(),
            owners: Mutex::default(),
            interval: Arc::default(),
            interval_shortened: Arc::default(),
            task: Mutex::default(),
        });
        heartbeats.insert(key, Arc::downgrade(&heartbeat));
        heartbeat
    }

    pub(crate) fn id(&self) -> [u8; 16] {
        self.id
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// How long the heartbeat counts as alive if an owner with this interval joins, in
    /// milliseconds.
    pub(crate) fn lifetime(&self, interval: Duration) -> f64 {
        (self.interval.get().min(interval).saturating_mul(LIFETIME)).as_secs_f64() * 1000.0
    }

    fn join(self: &Arc<Self>, owner: &Arc<Owner>, database: &Database, interval: Duration) {
        if self.interval.shorten(interval) {
            self.interval_shortened.notify_one();
        }
        let mut owners = lock(&self.owners);
        // Now and then: with many accounts, an opening should not look at all of them.
        if owners.len() == owners.capacity() {
            owners.retain(|owner| owner.owner.strong_count() > 0);
        }
        owners.push(Member { owner: Arc::downgrade(owner), database: database.clone() });
        drop(owners);
        let mut task = lock(&self.task);
        if task.as_ref().is_none_or(JoinHandle::is_finished) {
            *task = Some(tokio::spawn(run(Arc::downgrade(self))));
        }
    }

    fn owners(&self) -> Vec<(Arc<Owner>, Database)> {
        let mut owners = lock(&self.owners);
        owners.retain(|owner| owner.owner.strong_count() > 0);
        let owners = owners.iter().filter_map(|owner| Some((owner.owner.upgrade()?, owner)));
        let owners = owners.filter(|(ownership, _)| !ownership.has_ended());
        owners.map(|(ownership, owner)| (ownership, owner.database.clone())).collect()
    }

    pub(crate) fn interval(&self) -> &Arc<Interval> {
        &self.interval
    }

    /// Connects; if the credentials are refused, with those of the newest owners: a store that was
    /// opened before the password changed may have the old one.
    async fn connect(&self) -> Result<ClientWrapper, Error> {
        let mut result = self.database.connect_unpooled().await;
        for (_, database) in self.owners().iter().rev().take(OTHER_LOGINS) {
            match &result {
                Err(Error::Database(error)) if error.refuses_credentials() => {
                    result = database.connect_unpooled().await;
                }
                _ => break,
            }
        }
        result
    }

    async fn renew(&self, connection: &mut Option<ClientWrapper>) -> Result<(), Error> {
        let client = match connection.take() {
            Some(client) if !client.is_closed() => client,
            _ => self.connect().await?,
        };
        let owners = self.owners();
        let ids: Vec<i64> = owners.iter().map(|(owner, _)| owner.account_id).collect();
        // Taken before the query: a commit meanwhile would make its result look behind.
        let seen: Vec<OwnershipState> = owners.iter().map(|(owner, _)| owner.snapshot()).collect();
        let (lifetime, sent) = (self.lifetime(Duration::MAX), Moment::now());
        let params: [Param<'_>; 3] = [&self.id.as_slice(), &lifetime, &ids];
        let rows = self.database.autocommit(&client, &RENEW, None, &params).await?;
        *connection = Some(client);
        let mut lanes: HashMap<i64, Vec<LaneRow<'_>>> = HashMap::new();
        for row in &rows {
            let (account_id, lane) = LaneRow::of(row)?;
            lanes.entry(account_id).or_default().push(lane);
        }
        for ((owner, database), seen) in owners.iter().zip(&seen) {
            if let Some(lanes) = lanes.get(&owner.account_id) {
                apply_rows(owner, database, lanes, seen, sent);
            }
        }
        Ok(())
    }
}

/// Passes the rows of an account's lanes to its owner. A loss is verified on the account's own
/// connections, because the heartbeat's may lead to another server. The heartbeat of the other
/// accounts does not wait for that.
fn apply_rows(
    owner: &Arc<Owner>,
    database: &Database,
    rows: &[LaneRow<'_>],
    seen: &OwnershipState,
    sent: Moment,
) {
    match owner.evidence(rows, seen) {
        Evidence::Proof => owner.prove(sent),
        Evidence::None => {}
        Evidence::Loss => {
            let (owner, database) = (owner.clone(), database.clone());
            tokio::spawn(async move { owner.verify_once(&database).await });
        }
    }
    for row in rows {
        for lane in owner.lanes().iter().filter(|lane| lane.name == row.lane) {
            lane.cache.set_maintenance(row.maintenance);
        }
    }
}

async fn run(heartbeat: Weak<Heartbeat>) {
    let mut connection = None;
    loop {
        // Pauses first, because a claim counts as a heartbeat.
        let Some(found) = heartbeat.upgrade() else { return };
        let (interval, shortened) = (found.interval.get(), found.interval_shortened.clone());
        drop(found);
        if timeout(interval, shortened.notified()).await.is_ok() {
            continue;
        }
        let Some(heartbeat) = heartbeat.upgrade() else { return };
        let limit = interval.saturating_mul(LIFETIME);
        match timeout(limit, heartbeat.renew(&mut connection)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "a heartbeat failed"),
            Err(_) => debug!("a heartbeat was not answered"),
        }
    }
}
