//! A store's lane in an open account, and its writes.

pub(crate) mod cache;
pub(crate) mod cancellation;
pub(crate) mod cipher;
pub(crate) mod find;
pub(crate) mod handle;
pub(crate) mod leases;
pub(crate) mod ownership;
mod read;
pub(crate) mod store;
pub(crate) mod store_handle;
pub(crate) mod write;

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};
use tokio_postgres::Row;

use crate::{
    Access, Error, PostgresStoreConfig,
    account::{
        cache::{Cache, CacheKey, CacheUpdate, UncommittedOverlay},
        cipher::Codec,
        handle::OpenAccount,
        ownership::{LaneOwnership, OWNER, OwnerRow},
        store::StoreKind,
        write::{
            atomically::{RunningScope, Scope, ScopeLane},
            batch::Batch,
            lane::{Lane, Part, Stage, Writer},
        },
    },
    postgres::{
        cell::Cells,
        database::{Database, Param},
        statement::{Delete, Sql, Table, Write},
    },
};

/// A store's lane in an account that is open: where its rows are, how they are sealed, and what writes
/// them.
pub(crate) struct StoreLane {
    pub(crate) codec: Arc<Codec>,
    database: Database,
    lane: Arc<LaneOwnership>,
    kind: &'static StoreKind,
    /// `None` with read-only access.
    writer: Option<Writer>,
    /// The scope that holds the lane.
    running: Arc<RunningScope>,
    /// One permit for each scope, whether it holds the lane or not: closing waits for them.
    scopes: Semaphore,
    atomically_timeout: Duration,
}

/// Further scopes of a lane wait for others to end.
const MAX_SCOPES: u32 = 1 << 20;

/// The context in which a write is staged.
pub(crate) struct Staging {
    pub(crate) codec: Arc<Codec>,
    overlay: Arc<UncommittedOverlay>,
}

impl Staging {
    /// Whether this write would leave the row as it is, as far as that is known without a query.
    pub(crate) fn is_unchanged(
        &self,
        table: &'static Table,
        key: &Cells,
        is_same: impl FnOnce(&Cells) -> bool,
    ) -> bool {
        let Some(index) = table.cache else { return false };
        let (group, row_key) = CacheKey::of_row(index, key);
        self.overlay.row(&group, &row_key).is_some_and(|row| is_same(&row))
    }
}

impl StoreLane {
    /// The lane of a store, in an account that is open.
    fn new(
        account: &OpenAccount,
        kind: &'static StoreKind,
        config: &PostgresStoreConfig,
        maintenance: i64,
    ) -> Self {
        let (codec, database) = (account.cipher.codec.clone(), account.database.clone());
        let running = Arc::<RunningScope>::default();
        let cache = match &config.access {
            Access::Exclusive(settings) => Cache::with_budget(settings.cache_bytes),
            Access::ReadOnly => Cache::with_budget(0),
        };
        cache.set_maintenance(maintenance);
        let lane = account.owner.lane(kind.name, cache);
        let writer = account.presence.clone().map(|presence| {
            let lane = Lane { database: database.clone(), owner: lane.clone() };
            Writer::start(lane, presence)
        });
        let (scopes, atomically_timeout) =
            (Semaphore::new(MAX_SCOPES as usize), config.timeouts.atomically);
        Self { codec, database, lane, kind, writer, running, scopes, atomically_timeout }
    }

    pub(crate) fn lane(&self) -> &Arc<LaneOwnership> {
        &self.lane
    }

    pub(crate) fn kind(&self) -> &'static StoreKind {
        self.kind
    }

    /// Runs a write in a transaction of its own, even within [`Self::atomically`]. The owner token
    /// is appended as the last parameter, for the guard that the statement calls; no positions,
    /// because only the lane counts commits.
    pub(crate) async fn write_outside_scope(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
    ) -> Result<Option<Row>, Error> {
        self.writer()?;
        self.lane.check()?;
        let token = self.lane.owner.token();
        let (token, mut params) = (token.as_slice(), self.with_id(params));
        params.push(&token);
        let written = match self.overlay()? {
            // The scope may hold the pool's last connection while its caller waits for this write.
            Some(_) => match self.database.without_waiting().write_autocommit(sql, &params).await {
                Err(Error::PoolTimeout) => self.database.write_unpooled(sql, &params).await,
                answer => answer,
            },
            None => self.database.write_autocommit(sql, &params).await,
        };
        match written {
            Ok(mut rows) => Ok(rows.pop()),
            Err(error) => Err(self.lane.explain(&self.database, error).await),
        }
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.writer.is_none()
    }

    fn writer(&self) -> Result<&Writer, Error> {
        self.writer.as_ref().ok_or(Error::ReadOnly)
    }

    /// How many commits the account has: the sum over its lanes.
    pub(crate) async fn commits(&self) -> Result<u64, Error> {
        self.lane.check()?;
        let rows = self.query_routed(&OWNER, self.with_id(&[])).await?;
        Ok(OwnerRow::parse(&rows)?.commits().unsigned_abs())
    }

    /// Fails unless the server answers and the lane may still be used. Also detects another owner, and a
    /// database that was rolled back.
    pub(crate) async fn verify(&self) -> Result<(), Error> {
        self.lane.check()?;
        if self.writer.is_none() {
            return self.commits().await.map(drop);
        }
        self.lane.owner.read_owner_row(&self.database).await?;
        self.lane.check_write()
    }

    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    pub(crate) fn account_id(&self) -> i64 {
        self.lane.owner.account_id
    }

    /// How many connections the pool has, and how many operations wait for one.
    pub(crate) fn pool_status(&self) -> deadpool_postgres::Status {
        self.database.pool_status()
    }

    /// Queues a write in the lane and waits for its commit.
    pub(crate) async fn write<F>(
        &self,
        stage: impl FnOnce(Staging) -> F + Send + 'static,
    ) -> Result<(), Error>
    where
        F: Future<Output = Result<Batch, Error>> + Send + 'static,
    {
        let codec = self.codec.clone();
        self.stage(move |overlay| stage(Staging { codec, overlay })).await
    }

    /// Deletes one row.
    pub(crate) async fn delete(
        &self,
        delete: &'static Delete,
        key: impl Into<Cells>,
    ) -> Result<(), Error> {
        let mut batch = Batch::default();
        batch.delete(delete, key);
        self.write(|_| std::future::ready(Ok(batch))).await
    }

    /// Runs a write that needs no more than a key, and updates the cache.
    pub(crate) async fn apply(
        &self,
        write: &'static Write,
        key: impl Into<Cells>,
        updates: impl IntoIterator<Item = CacheUpdate>,
    ) -> Result<(), Error> {
        let mut batch = Batch::default();
        batch.write(write, key, Cells::default(), updates);
        self.write(|_| std::future::ready(Ok(batch))).await
    }

    async fn stage<F>(
        &self,
        stage: impl FnOnce(Arc<UncommittedOverlay>) -> F + Send + 'static,
    ) -> Result<(), Error>
    where
        F: Future<Output = Result<Batch, Error>> + Send + 'static,
    {
        let writer = self.writer()?;
        let stage: Stage = Box::new(move |overlay| Box::pin(stage(overlay)));
        match self.scope()? {
            Some(scope) => scope.write(&self.lane, stage).await,
            None => writer.write(stage).await,
        }
    }

    /// Writes several parts as one transaction: each is sent while the next is staged.
    pub(crate) async fn write_parts<P>(
        &self,
        parts: impl Iterator<Item = P> + Send + 'static,
    ) -> Result<(), Error>
    where
        P: FnOnce() -> Result<Batch, Error> + Send + 'static,
    {
        let writer = self.writer()?;
        if let Some(scope) = self.scope()? {
            // A scope sends nothing at a save, so staging ahead would not overlap with sending.
            for part in parts {
                let staged = async move {
                    spawn_blocking(part).await.map_err(|error| Error::of_task(&error))?
                };
                scope.write(&self.lane, Box::new(|_| Box::pin(staged))).await?;
            }
            return Ok(());
        }
        writer.write_parts(Box::new(parts.map(|part| Box::new(part) as Part))).await
    }

    /// Runs a future and commits all of its writes in this store as one transaction; `wrap`
    /// converts errors.
    pub(crate) async fn atomically<T, E>(
        &self,
        future: impl Future<Output = Result<T, E>>,
        wrap: impl Fn(Error) -> E,
    ) -> Result<T, E> {
        atomically(&[self], future, wrap).await
    }

    /// The scope of the calling task, if it is in one.
    pub(crate) fn scope(&self) -> Result<Option<Arc<Scope>>, Error> {
        match Scope::current() {
            Some(scope) if !scope.is_of(&self.lane) => Err(Error::OtherStoreInAtomically),
            scope => Ok(scope),
        }
    }

    /// The scope that holds the lane: its changes are visible to the lane's reads, in every task.
    pub(crate) fn overlay(&self) -> Result<Option<Arc<Scope>>, Error> {
        self.scope()?;
        Ok(self.running.get())
    }

    /// Whether the lane can be written to without reopening: nothing has failed, and the runtime on
    /// which the account was opened is still running.
    pub(crate) fn can_write(&self) -> bool {
        self.lane.check_write().is_ok()
            && self.running.get().is_none_or(|scope| !scope.fails_at_end(&self.lane))
            && self.writer.as_ref().is_none_or(Writer::is_running)
    }

    /// Refuses new scopes and writes, and waits for those that have begun; reads go on meanwhile.
    /// Waits for a scope that saves nothing no longer than `atomically` may take.
    pub(crate) async fn finish_writes(&self) {
        if !self.scopes.is_closed() {
            let _ = timeout(self.atomically_timeout, self.scopes.acquire_many(MAX_SCOPES)).await;
            self.scopes.close();
        }
        if let Some(writer) = &self.writer {
            writer.close().await;
        }
    }

    fn scope_lane(&self) -> Result<(ScopeLane, Writer), Error> {
        let writer = self.writer()?.clone();
        let hidden = self.kind.hidden_until_commit;
        Ok((ScopeLane::new(self.lane.clone(), self.running.clone(), hidden), writer))
    }
}

/// Runs a future and commits all of its writes in these stores of one account as one transaction.
pub(crate) async fn atomically<T, E>(
    stores: &[&StoreLane],
    future: impl Future<Output = Result<T, E>>,
    wrap: impl Fn(Error) -> E,
) -> Result<T, E> {
    if Scope::current().is_some() {
        return Err(wrap(Error::NestedAtomically));
    }
    let (mut lanes, mut counted, mut limit) = (Vec::new(), Vec::new(), Duration::MAX);
    for store in stores {
        lanes.push(store.scope_lane().map_err(&wrap)?);
        counted.push(store.scopes.acquire().await.map_err(|_| wrap(Error::StoreClosed))?);
        limit = limit.min(store.atomically_timeout);
    }
    Scope::run(lanes, limit, future, wrap).await
}
