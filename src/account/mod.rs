//! An account that is open: what it consists of, and its writes.

pub(crate) mod cache;
pub(crate) mod caller;
pub(crate) mod cipher;
mod find;
pub(crate) mod ownership;
mod read;
pub(crate) mod write;

use std::{future::Future, sync::Arc, time::Duration};

use matrix_sdk_crypto::CryptoStoreError;
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};
use tokio_postgres::Row;

use crate::{
    Access, Error, OpenStoreError, PostgresStoreConfig,
    account::{
        cache::{Cache, CacheKey, CacheUpdate, UncommittedOverlay},
        cipher::Codec,
        ownership::{OWNER, OwnerRow, Ownership, Tokens, is_other_owner},
        write::{
            atomically::{Running, Scope},
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

pub(crate) const STATEMENTS: &[&Sql] =
    &[&ownership::claim::CLAIM, &find::INSERT, &find::INSERT_NEXT];

/// An account that is open: where its rows are, how they are sealed, and who writes them.
pub(crate) struct OpenAccount {
    pub(crate) codec: Arc<Codec>,
    database: Database,
    owner: Arc<Ownership>,
    /// `None` for an observer.
    writer: Option<Writer>,
    /// The scope that has the lane.
    running: Arc<Running>,
    /// One for each scope, whether it has the lane or not: closing waits for them.
    scopes: Semaphore,
    atomically_timeout: Duration,
}

/// More scopes of one account than these wait for others to end.
const MOST_SCOPES: u32 = 1 << 20;

/// What a write is staged with.
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

impl OpenAccount {
    /// Brings the schema up to date, finds or creates the account, opens its cipher, and takes the
    /// account over; `former` is what this store owned before it was reopened.
    pub(crate) async fn open(
        database: Database,
        config: &PostgresStoreConfig,
        former: Option<&Ownership>,
    ) -> Result<Self, OpenStoreError> {
        let (id, codec) = find::find(&database, config).await?;
        let running = Arc::<Running>::default();
        let (owner, writer) = match config.access {
            Access::Observe => {
                (Arc::new(Ownership::new(id, Tokens::default(), Cache::new(0, 0))), None)
            }
            Access::Exclusive => {
                let (owner, presence) =
                    ownership::claim::claim(&database, config, id, former).await?;
                let (database, running) = (database.clone(), running.clone());
                let lane = Lane { database, owner: owner.clone(), running };
                (owner, Some(Writer::start(lane, presence)))
            }
        };
        Ok(Self {
            codec: Arc::new(codec),
            database,
            owner,
            writer,
            running,
            scopes: Semaphore::new(MOST_SCOPES as usize),
            atomically_timeout: config.atomically_timeout,
        })
    }

    pub(crate) fn owner(&self) -> &Arc<Ownership> {
        &self.owner
    }

    /// Runs a write that stands for itself, even within [`Self::atomically`]. Its last parameter is
    /// for the guard, which it calls: the token alone, for commits are counted in the lane.
    pub(crate) async fn write_apart(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
    ) -> Result<Option<Row>, Error> {
        self.writer()?;
        self.owner.check()?;
        let mut token = self.owner.token();
        loop {
            let error = match self.write_with_token(sql, params, &token).await {
                Ok(mut rows) => return Ok(rows.pop()),
                Err(error) => error,
            };
            match self.owner.token_instead(&token) {
                // The writer lane has replaced the token since, or is about to.
                Some(next) if is_other_owner(&error) => token = next,
                _ => return Err(self.owner.explain(&self.database, error).await),
            }
        }
    }

    async fn write_with_token(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
        token: &[u8],
    ) -> Result<Vec<Row>, Error> {
        let mut params = self.with_id(params);
        params.push(&token);
        match self.overlay()? {
            // The scope may hold the pool's last connection, and its caller wait for us.
            Some(_) => match self.database.without_waiting().write_autocommit(sql, &params).await {
                Err(Error::PoolTimeout) => self.database.write_apart(sql, &params).await,
                answer => answer,
            },
            None => self.database.write_autocommit(sql, &params).await,
        }
    }

    fn writer(&self) -> Result<&Writer, Error> {
        self.writer.as_ref().ok_or(Error::ObserveOnly)
    }

    /// How many transactions were committed in the account.
    pub(crate) async fn commits(&self) -> Result<u64, Error> {
        self.owner.check()?;
        let rows = self.query_routed(&OWNER, self.with_id(&[])).await?;
        Ok(OwnerRow::parse(&rows)?.commits.unsigned_abs())
    }

    /// Queues a write in the account's lane and waits for its commit.
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
            Some(scope) => scope.write(stage).await,
            None => writer.write(stage).await,
        }
    }

    /// Writes what comes in parts as one transaction: the server takes one while the next is staged.
    pub(crate) async fn write_parts<P>(
        &self,
        parts: impl Iterator<Item = P> + Send + 'static,
    ) -> Result<(), Error>
    where
        P: FnOnce() -> Result<Batch, Error> + Send + 'static,
    {
        let writer = self.writer()?;
        if let Some(scope) = self.scope()? {
            // Nothing is sent within, so there is nothing to stage ahead of.
            for part in parts {
                let staged =
                    async move { spawn_blocking(part).await.map_err(|_| Error::StoreClosed)? };
                scope.write(Box::new(|_| Box::pin(staged))).await?;
            }
            return Ok(());
        }
        writer.write_parts(Box::new(parts.map(|part| Box::new(part) as Part))).await
    }

    /// Runs a future all of whose writes become one transaction.
    pub(crate) async fn atomically<T, E: From<CryptoStoreError>>(
        &self,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        if Scope::current().is_some() {
            return Err(CryptoStoreError::from(Error::NestedAtomically).into());
        }
        let wrap = |error| -> E { CryptoStoreError::from(error).into() };
        let writer = self.writer().map_err(wrap)?.clone();
        let _counted = self.scopes.acquire().await.map_err(|_| wrap(Error::StoreClosed))?;
        let (owner, limit) = (self.owner.clone(), self.atomically_timeout);
        Scope::run(writer, owner, limit, future, wrap).await
    }

    /// The transaction that the calling task is in.
    pub(crate) fn scope(&self) -> Result<Option<Arc<Scope>>, Error> {
        match Scope::current() {
            Some(scope) if !scope.is_of(&self.owner) => Err(Error::OtherStoreInAtomically),
            scope => Ok(scope),
        }
    }

    /// The scope whose changes are seen by the account's reads, whatever task they are in.
    pub(crate) fn overlay(&self) -> Result<Option<Arc<Scope>>, Error> {
        self.scope()?;
        Ok(self.running.get())
    }

    /// Whether the account need not be opened again before it is written to: nothing has failed, and
    /// the runtime on which it was opened has not ended.
    pub(crate) fn can_write(&self) -> bool {
        !self.owner.has_failed()
            && self.running.get().is_none_or(|scope| !scope.fails_at_end())
            && self.writer.as_ref().is_none_or(Writer::is_running)
    }

    /// Takes no more scopes and writes, and waits for those that were begun; reads go on meanwhile. A
    /// scope that saves nothing is waited for as long as others may take.
    pub(crate) async fn finish_writes(&self) {
        if !self.scopes.is_closed() {
            let _ = timeout(self.atomically_timeout, self.scopes.acquire_many(MOST_SCOPES)).await;
            self.scopes.close();
        }
        if let Some(writer) = &self.writer {
            writer.close().await;
        }
    }

    /// Lets go of the account.
    pub(crate) async fn close(&self) {
        self.finish_writes().await;
        self.owner.cache.close();
    }

    pub(crate) fn close_pool(&self) {
        self.database.close_pool();
    }
}
