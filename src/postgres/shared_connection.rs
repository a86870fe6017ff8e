//! A few connections of a pool, on which several readers pipeline their queries.
//!
//! With a checkout for each read, every read would wait for a connection, and every answer would
//! cost two wake-ups. Here a reader joins a connection that others are reading on. The last of them
//! returns it to the pool, so an idle store holds none, and the pool's limits on age and idle time
//! still apply.
//!
//! The shared connections belong to the pool, not to the store: 200 stores on one pool share them.

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use deadpool_postgres::{Object, Pool, Timeouts};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use crate::Error;

/// Further connections do not raise the throughput: each is a process of the server.
const MAX_SLOTS: usize = 4;

/// New readers of a slot use a new connection while earlier ones finish on the old one.
const CONNECTIONS_PER_SLOT: usize = 2;

/// How long new readers may join a connection. Without this limit, readers that keep overlapping
/// would hold it forever, also from a writer that waits for the pool's only connection.
const JOIN_WINDOW: Duration = Duration::from_millis(20);

/// The shared connections of all pools in use, by the pool's address.
static SHARED_CONNECTIONS: LazyLock<Mutex<HashMap<usize, Weak<SharedConnections>>>> =
    LazyLock::new(Mutex::default);

/// The connections that the readers of one pool share.
pub(crate) struct SharedConnections {
    /// Keeps the pool's address from being reused.
    pool: Pool,
    slots: Vec<Slot>,
    /// One permit for each connection that readers may hold.
    permits: Arc<Semaphore>,
}

/// One connection to join, and the previous one while its readers finish.
#[derive(Default)]
struct Slot {
    /// Locked while a connection is taken, so that concurrent readers take one.
    connection: tokio::sync::Mutex<Weak<SharedConnection>>,
    /// How many readers use a connection of the slot, or wait for one.
    readers: Arc<AtomicUsize>,
}

impl SharedConnections {
    /// The shared connections of this pool.
    pub(crate) fn of(pool: &Pool) -> Arc<Self> {
        let mut all = all();
        if let Some(shared) = all.get(&address(pool)).and_then(Weak::upgrade) {
            return shared;
        }
        // At most 8 connections: a larger pool keeps the others for writers.
        let slots = (pool.status().max_size / CONNECTIONS_PER_SLOT).clamp(1, MAX_SLOTS);
        let shared = Arc::new(Self {
            pool: pool.clone(),
            slots: (0..slots).map(|_| Default::default()).collect(),
            permits: Arc::new(Semaphore::new(slots * CONNECTIONS_PER_SLOT)),
        });
        all.insert(address(pool), Arc::downgrade(&shared));
        shared
    }

    /// Joins the readers of a connection; the first of them takes it from the pool with `take`.
    pub(crate) async fn join<F>(
        &self,
        mut timeouts: Timeouts,
        take: impl FnOnce(Timeouts) -> F,
    ) -> Result<Joined, Error>
    where
        F: Future<Output = Result<Object, Error>>,
    {
        let started = Instant::now();
        // The least used one: a connection carries many reads, but the server answers them one by
        // one.
        let slot = self.slots.iter().min_by_key(|slot| slot.readers.load(Ordering::Relaxed));
        let slot = slot.ok_or(Error::Internal("a pool has no slots for readers"))?;
        let reader = SlotUse::of(slot);
        let mut shared = within(timeouts.wait, slot.connection.lock()).await?;
        if let Some(connection) = shared.upgrade().filter(|connection| connection.is_joinable()) {
            return Ok(Joined { connection, _reader: reader });
        }
        let left = |wait: Duration| wait.saturating_sub(started.elapsed());
        let permit = self.permits.clone().acquire_owned();
        let permit = within(timeouts.wait.map(left), permit).await?;
        let permit = permit.map_err(|_| Error::Internal("a semaphore was closed"))?;
        timeouts.wait = timeouts.wait.map(left);
        let connection = Arc::new(SharedConnection::new(take(timeouts).await?, permit));
        *shared = Arc::downgrade(&connection);
        Ok(Joined { connection, _reader: reader })
    }
}

/// A reader's use of a shared connection.
pub(crate) struct Joined {
    connection: Arc<SharedConnection>,
    _reader: SlotUse,
}

impl std::ops::Deref for Joined {
    type Target = SharedConnection;

    fn deref(&self) -> &SharedConnection {
        &self.connection
    }
}

/// Counts one reader of a slot until it is dropped.
struct SlotUse(Arc<AtomicUsize>);

impl SlotUse {
    fn of(slot: &Slot) -> Self {
        slot.readers.fetch_add(1, Ordering::Relaxed);
        Self(slot.readers.clone())
    }
}

impl Drop for SlotUse {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Awaits the future, up to the pool's wait timeout.
async fn within<T>(limit: Option<Duration>, future: impl Future<Output = T>) -> Result<T, Error> {
    match limit {
        Some(limit) => timeout(limit, future).await.map_err(|_| Error::PoolTimeout),
        None => Ok(future.await),
    }
}

impl Drop for SharedConnections {
    fn drop(&mut self) {
        let mut all = all();
        // Another store may have created a new entry meanwhile.
        if all.get(&address(&self.pool)).is_some_and(|shared| shared.strong_count() == 0) {
            all.remove(&address(&self.pool));
        }
    }
}

/// A connection that several readers use at once; the last one returns it to the pool.
pub(crate) struct SharedConnection {
    /// `None` only while it is dropped.
    connection: Option<Object>,
    taken: Instant,
    spoiled: AtomicBool,
    /// Returned after the connection.
    _permit: OwnedSemaphorePermit,
}

impl SharedConnection {
    fn new(connection: Object, permit: OwnedSemaphorePermit) -> Self {
        let spoiled = AtomicBool::new(false);
        Self { connection: Some(connection), taken: Instant::now(), spoiled, _permit: permit }
    }

    fn is_joinable(&self) -> bool {
        !self.spoiled.load(Ordering::Acquire)
            && self.taken.elapsed() < JOIN_WINDOW
            && self.connection.as_ref().is_some_and(|connection| !connection.is_closed())
    }

    pub(crate) fn get(&self) -> Result<&Object, Error> {
        self.connection.as_ref().ok_or(Error::Internal(
            "a shared connection was used after it was returned to the pool",
        ))
    }

    /// Excludes the connection from further use: no reader joins it, and it is closed instead of
    /// returned to the pool.
    pub(crate) fn spoil(&self) {
        self.spoiled.store(true, Ordering::Release);
    }
}

impl Drop for SharedConnection {
    fn drop(&mut self) {
        if *self.spoiled.get_mut() {
            drop(self.connection.take().map(Object::take));
        }
    }
}

/// Identifies a pool: all of its clones share one manager.
pub(crate) fn address(pool: &Pool) -> usize {
    std::ptr::from_ref(pool.manager()).addr()
}

fn all() -> MutexGuard<'static, HashMap<usize, Weak<SharedConnections>>> {
    SHARED_CONNECTIONS.lock().unwrap_or_else(PoisonError::into_inner)
}
