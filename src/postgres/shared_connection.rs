//! SharedConnections share a few connections of a pool and pipeline on them.
//!
//! A checkout for each read makes every read wait for a connection, and every answer wake the
//! kernel twice. Here a reader joins a connection that others are reading on; when the last of them
//! is done it goes back to the pool by itself, so an idle store holds none, and the pool's limits on
//! age and idleness go on as before.
//!
//! The group belongs to the pool, not to the store: 200 stores on one pool share it.

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

/// More connections than these carry no more reads: each is a process of the server's.
const MOST_SLOTS: usize = 4;

/// A slot's readers begin on a new connection while those before finish on the old one.
const CONNECTIONS_PER_SLOT: usize = 2;

/// How long new readers may join a connection. SharedConnections that overlap without end would otherwise keep
/// it from the writer that waits for the pool's only one.
const JOINABLE: Duration = Duration::from_millis(20);

/// The groups of all pools in use, by the address of the pool.
static GROUPS: LazyLock<Mutex<HashMap<usize, Weak<SharedConnections>>>> =
    LazyLock::new(Mutex::default);

/// The connections that the readers of one pool share.
pub(crate) struct SharedConnections {
    /// Keeps the pool's address from being used for another one.
    pool: Pool,
    slots: Vec<Slot>,
    /// One for each connection that may be in the readers' hands.
    permits: Arc<Semaphore>,
}

/// Room for one connection, and for the next one while its readers finish.
#[derive(Default)]
struct Slot {
    /// Locked while a connection is awaited, so that many readers do not each ask for one.
    connection: tokio::sync::Mutex<Weak<SharedConnection>>,
    /// SharedConnections that use it or wait for it.
    readers: Arc<AtomicUsize>,
}

impl SharedConnections {
    /// The group of this pool.
    pub(crate) fn of(pool: &Pool) -> Arc<Self> {
        let mut groups = groups();
        if let Some(readers) = groups.get(&address(pool)).and_then(Weak::upgrade) {
            return readers;
        }
        // Some are left for the writers.
        let slots = (pool.status().max_size / CONNECTIONS_PER_SLOT).clamp(1, MOST_SLOTS);
        let readers = Arc::new(Self {
            pool: pool.clone(),
            slots: (0..slots).map(|_| Default::default()).collect(),
            permits: Arc::new(Semaphore::new(slots * CONNECTIONS_PER_SLOT)),
        });
        groups.insert(address(pool), Arc::downgrade(&readers));
        readers
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
        // A connection carries many reads at once, but the server answers them one after the other.
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

/// A reader's share of a connection.
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

/// Counts among the readers of a slot until it is dropped.
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

/// Waits no longer than the pool lets a caller wait for a connection.
async fn within<T>(limit: Option<Duration>, future: impl Future<Output = T>) -> Result<T, Error> {
    match limit {
        Some(limit) => timeout(limit, future).await.map_err(|_| Error::PoolTimeout),
        None => Ok(future.await),
    }
}

impl Drop for SharedConnections {
    fn drop(&mut self) {
        let mut groups = groups();
        // Another store may have begun a new group meanwhile.
        if groups.get(&address(&self.pool)).is_some_and(|group| group.strong_count() == 0) {
            groups.remove(&address(&self.pool));
        }
    }
}

/// A connection that several readers use at once; the last one gives it back to the pool.
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
            && self.taken.elapsed() < JOINABLE
            && self.connection.as_ref().is_some_and(|connection| !connection.is_closed())
    }

    pub(crate) fn get(&self) -> Result<&Object, Error> {
        self.connection.as_ref().ok_or(Error::Internal("a connection was given back"))
    }

    /// Keeps others from using it: nobody joins any more, and the pool will not see it again.
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

/// What tells one pool from another: its clones have one manager.
pub(crate) fn address(pool: &Pool) -> usize {
    std::ptr::from_ref(pool.manager()).addr()
}

fn groups() -> MutexGuard<'static, HashMap<usize, Weak<SharedConnections>>> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}
