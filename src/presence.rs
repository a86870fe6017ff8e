//! Whether an owner is alive: one heartbeat for each process and database, by the server's clock.

use std::{
    collections::HashMap,
    sync::{
        Arc, LazyLock, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use deadpool_postgres::ClientWrapper;
use tokio::{runtime::Handle, sync::Notify, task::JoinHandle, time::timeout};
use tokio_postgres::types::Type;
use tracing::debug;

use crate::{
    Error,
    connection::Database,
    ownership::{Found, Ownership, random_id},
    statement::Sql,
};

/// A process counts as alive for this many intervals after its last beat.
const LIFETIME: u32 = 3;

// It tells nothing that a crash may not undo, so it does not wait for the disk.
static BEAT: Sql = Sql {
    name: "processes.beat",
    template: "
WITH beat AS (
    INSERT INTO {schema}.processes (id, alive_until)
    VALUES ($1, clock_timestamp() + $2 * interval '1 millisecond')
    ON CONFLICT (id) DO UPDATE SET alive_until = excluded.alive_until
    RETURNING set_config('synchronous_commit', 'off', true))
SELECT o.account_id, o.token, o.name, o.since, t.commits, t.maintenance
FROM {schema}.account_owners o JOIN {schema}.sync_tokens t USING (account_id)
WHERE o.account_id = ANY ($3)",
    types: &[Type::BYTEA, Type::FLOAT8, Type::INT8_ARRAY],
};

static RELEASE: Sql = Sql {
    name: "openings.delete",
    template: "DELETE FROM {schema}.openings WHERE account_id = $1 AND id = $2",
    types: &[Type::INT8, Type::BYTEA],
};

pub(crate) const STATEMENTS: &[&Sql] = &[&BEAT, &RELEASE];

/// This process, in all databases.
static PROCESS: LazyLock<[u8; 16]> = LazyLock::new(random_id);

static HEARTS: LazyLock<Mutex<HashMap<Vec<u8>, Weak<Heart>>>> = LazyLock::new(Mutex::default);

pub(crate) fn process_id() -> [u8; 16] {
    *PROCESS
}

/// How long a process that beats in this interval counts as alive, in milliseconds.
pub(crate) fn lifetime(interval: Duration) -> f64 {
    (interval * LIFETIME).as_secs_f64() * 1000.0
}

/// The heartbeat in one database, as long as one of its accounts is open.
struct Heart {
    database: Database,
    owners: Mutex<Vec<Weak<Ownership>>>,
    interval_ms: AtomicU64,
    /// Wakes the one who sleeps for a longer interval.
    is_shorter: Arc<Notify>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// An account that is open in this process; when it is dropped, its owner no longer counts as alive.
pub(crate) struct Presence {
    _heart: Arc<Heart>,
    database: Database,
    account_id: i64,
    opening: [u8; 16],
    released: AtomicBool,
    runtime: Handle,
}

impl Presence {
    /// Notes that the account is open, in the database that calls itself `instance`.
    pub(crate) fn new(
        instance: Vec<u8>,
        database: &Database,
        owner: &Arc<Ownership>,
        opening: [u8; 16],
        interval: Duration,
    ) -> Self {
        let heart = {
            let mut hearts = HEARTS.lock().unwrap_or_else(PoisonError::into_inner);
            hearts.retain(|_, heart| heart.strong_count() > 0);
            let known = hearts.get(&instance).and_then(Weak::upgrade);
            let heart = known.unwrap_or_else(|| Heart::new(database.clone()));
            hearts.insert(instance, Arc::downgrade(&heart));
            heart
        };
        heart.join(owner, interval);
        Self {
            _heart: heart,
            database: database.clone(),
            account_id: owner.account_id,
            opening,
            released: AtomicBool::new(false),
            runtime: Handle::current(),
        }
    }

    /// Lets the next one have the account without waiting.
    pub(crate) async fn release(&self) {
        if !self.released.swap(true, Ordering::AcqRel) {
            release(&self.database, self.account_id, self.opening).await;
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        if !self.released.swap(true, Ordering::AcqRel) {
            let (database, account_id, opening) =
                (self.database.clone(), self.account_id, self.opening);
            // Nothing happens when the runtime is gone: then the heartbeat's end tells.
            self.runtime.spawn(async move { release(&database, account_id, opening).await });
        }
    }
}

async fn release(database: &Database, account_id: i64, opening: [u8; 16]) {
    if let Err(error) = database.query_alone(&RELEASE, &[&account_id, &opening.as_slice()]).await {
        debug!(%error, "the account could not be released: it is free when the heartbeat ends");
    }
}

impl Heart {
    fn new(database: Database) -> Arc<Self> {
        Arc::new(Self {
            database,
            owners: Mutex::default(),
            interval_ms: AtomicU64::new(u64::MAX),
            is_shorter: Arc::default(),
            task: Mutex::default(),
        })
    }

    fn join(self: &Arc<Self>, owner: &Arc<Ownership>, interval: Duration) {
        let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1);
        if self.interval_ms.fetch_min(interval_ms, Ordering::AcqRel) > interval_ms {
            self.is_shorter.notify_one();
        }
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.retain(|owner| owner.strong_count() > 0);
        owners.push(Arc::downgrade(owner));
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        // A task ends with its runtime, which another account's store may outlive.
        if task.as_ref().is_none_or(JoinHandle::is_finished) {
            *task = Some(tokio::spawn(run(Arc::downgrade(self))));
        }
    }

    fn owners(&self) -> Vec<Arc<Ownership>> {
        let owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.iter().filter_map(Weak::upgrade).collect()
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms.load(Ordering::Acquire))
    }

    async fn beat(&self, connection: &mut Option<ClientWrapper>) -> Result<(), Error> {
        let client = match connection.take() {
            Some(client) if !client.is_closed() => client,
            _ => self.database.connect_apart().await?,
        };
        let owners = self.owners();
        let ids: Vec<i64> = owners.iter().map(|owner| owner.account_id).collect();
        let seen: Vec<i64> = owners.iter().map(|owner| owner.seen()).collect();
        let (process, lifetime) = (process_id(), lifetime(self.interval()));
        let rows = self
            .database
            .run_unnamed(&client, &BEAT, &[&process.as_slice(), &lifetime, &ids])
            .await?;
        for row in &rows {
            let found = Found::of(row)?;
            let ours = owners.iter().zip(&seen);
            for (owner, seen) in ours.filter(|(owner, _)| owner.account_id == found.account_id) {
                owner.observe(&found, *seen);
                owner.cache.see_maintenance(row.try_get(5)?);
            }
        }
        *connection = Some(client);
        Ok(())
    }
}

async fn run(heart: Weak<Heart>) {
    let mut connection = None;
    loop {
        // First the pause: whoever claims an account has beaten already.
        let Some(found) = heart.upgrade() else { return };
        let (interval, is_shorter) = (found.interval(), found.is_shorter.clone());
        drop(found);
        if timeout(interval, is_shorter.notified()).await.is_ok() {
            continue;
        }
        let Some(heart) = heart.upgrade() else { return };
        match timeout(interval * LIFETIME, heart.beat(&mut connection)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "a heartbeat failed"),
            Err(_) => debug!("a heartbeat was not answered"),
        }
    }
}
