//! The pool, and how a statement travels: prepared together when a connection is first used, or
//! typed and unnamed on a foreign pool and behind poolers.

mod autocommit;
mod query;
mod stream;

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use deadpool::managed::Manager as _;
use deadpool_postgres::{ClientWrapper, Object, Pool, PoolError, StatementCache, Status, Timeouts};
use futures_util::future::{join, join_all};
use tokio::time::timeout;
use tokio_postgres::{
    Client, Row, Statement,
    types::{ToSql, Type},
};
use tracing::debug;

use crate::{
    DatabaseError, Error, OpenStoreError,
    config::timeouts,
    postgres::{
        connect::{self, Connector},
        pool::pool_error,
        retry::Retry,
        shared_connection::{self, Readers},
        statement::{Rendered, Sql, Statements},
    },
};

/// A parameter of a read.
pub(crate) type Param<'a> = &'a (dyn ToSql + Sync);

/// A pool, the statements of one schema, and how to send them.
#[derive(Clone)]
pub(crate) struct Database {
    /// Of a pool of our own. Dropped before the pool, which ends with the connector.
    connector: Option<Connector>,
    pool: Pool,
    readers: Arc<Readers>,
    statements: Arc<Statements>,
    /// `None` when statements are not prepared, as on a foreign pool: a pooler may be behind.
    prepared: Option<Arc<Prepared>>,
    target: Target,
    limits: timeouts::Timeouts,
    /// Whether a connection is waited for, or made, when none is idle.
    waits: bool,
}

/// A way to a server: which database is at its end, no database can say for itself, for a copy says
/// the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    /// What the configuration says of the server.
    Server(String),
    /// A pool that came from outside.
    Pool(usize),
}

/// The connections on which all statements have been prepared, by the address of their statement cache.
/// A weak reference keeps the address from being used again.
#[derive(Default)]
struct Prepared(Mutex<HashMap<usize, Weak<StatementCache>>>);

impl Prepared {
    fn has(&self, connection: &Object) -> bool {
        self.lock().contains_key(&Arc::as_ptr(&connection.statement_cache).addr())
    }

    fn add(&self, connection: &Object) {
        let cache = &connection.statement_cache;
        let mut caches = self.lock();
        caches.retain(|_, cache| cache.strong_count() > 0);
        caches.insert(Arc::as_ptr(cache).addr(), Arc::downgrade(cache));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Weak<StatementCache>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Database {
    pub(crate) fn new(
        pool: Pool,
        statements: Arc<Statements>,
        limits: &timeouts::Timeouts,
    ) -> Self {
        let connector = Connector::of(&pool);
        let readers = Readers::of(&pool);
        let target = match &connector {
            Some(connector) => Target::Server(connector.target()),
            None => Target::Pool(shared_connection::address(&pool)),
        };
        let prepares = connector.as_ref().is_some_and(Connector::prepares_statements);
        let prepared = prepares.then(Arc::default);
        let limits = *limits;
        Self { connector, pool, readers, statements, prepared, target, limits, waits: true }
    }

    /// The same for a caller that has another way: without an idle connection it is
    /// [`Error::PoolTimeout`] at once.
    pub(crate) fn without_waiting(&self) -> Self {
        Self { waits: false, ..self.clone() }
    }

    fn timeouts(&self) -> Timeouts {
        let timeouts = self.pool.timeouts();
        let wait = if self.waits { timeouts.wait } else { Some(Duration::ZERO) };
        Timeouts { wait, ..timeouts }
    }

    pub(crate) fn statements(&self) -> &Statements {
        &self.statements
    }

    /// Rises when a COMMIT on this pool did not wait for its synchronous standby; never on a foreign
    /// pool, whose connections do not tell.
    pub(crate) fn unreplicated_commits(&self) -> u64 {
        self.connector.as_ref().map_or(0, Connector::unreplicated_commits)
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    pub(crate) fn statement_timeout(&self) -> Duration {
        self.limits.statement
    }

    /// How long the answers to so many statements are awaited. The server's own timeout comes first;
    /// this one is for a server that does not answer.
    pub(crate) fn time_for(&self, statements: u32) -> Duration {
        let limit = self.limits.statement.saturating_mul(statements);
        limit.saturating_add(limit / 4)
    }

    /// How something that had no effect is tried again.
    pub(crate) fn retry(&self) -> Retry {
        Retry::new(self.limits.retry)
    }

    pub(crate) fn idle_timeout(&self) -> Duration {
        self.limits.transaction_idle
    }

    /// A connection that is none of the pool's, so that it waits for nobody.
    pub(crate) async fn connect_unpooled(&self) -> Result<ClientWrapper, Error> {
        self.pool.manager().create().await.map_err(|error| connect::login_error(&error).into())
    }

    pub(crate) fn pool_status(&self) -> Status {
        self.pool.status()
    }

    pub(crate) fn close_pool(&self) {
        self.pool.close();
    }

    /// Takes a connection, for opening: its errors tell why none can be made.
    pub(crate) async fn connect(&self) -> Result<Object, OpenStoreError> {
        self.pool.get().await.map_err(|error| match error {
            PoolError::Backend(error) => connect::classify(&error),
            error => OpenStoreError::Store(pool_error(error)),
        })
    }

    /// Takes a connection.
    pub(crate) async fn connection(&self) -> Result<Object, Error> {
        self.take(self.timeouts()).await
    }

    async fn take(&self, timeouts: Timeouts) -> Result<Object, Error> {
        if !self.waits && self.pool.status().available == 0 {
            return Err(Error::PoolTimeout);
        }
        self.pool.timeout_get(&timeouts).await.map_err(pool_error)
    }

    /// Whether statements have names on this connection: they are to be prepared, and all are.
    pub(crate) fn is_prepared(&self, connection: &Object) -> bool {
        self.prepared.as_ref().is_some_and(|prepared| prepared.has(connection))
    }

    /// Awaits what was asked on a connection. When that is new, all statements are prepared on it in
    /// the same round trip: once, however many ask on it.
    pub(crate) async fn join_with_prepare<T>(
        &self,
        connection: &Object,
        is_prepared: bool,
        answer: impl Future<Output = T>,
    ) -> T {
        let Some(all_prepared) = self.prepared.as_ref().filter(|_| !is_prepared) else {
            return answer.await;
        };
        let statements = self.statements.iter();
        let prepared = join_all(
            statements.map(|(_, sql)| connection.prepare_typed_cached(&sql.text, &sql.types)),
        );
        // Polled first, so that they are not prepared within a transaction, which would keep locks.
        let (prepared, answer) = join(timeout(self.limits.statement, prepared), answer).await;
        let Ok(prepared) = prepared else { return answer };
        let failures: Vec<_> = prepared.into_iter().filter_map(Result::err).collect();
        if failures.is_empty() {
            all_prepared.add(connection);
        }
        // The next use of the connection prepares what is missing.
        for error in failures.into_iter().map(DatabaseError::from) {
            debug!(%error, "a statement could not be prepared");
        }
        answer
    }

    /// The prepared form of a statement, or `None` when it goes unnamed.
    pub(crate) async fn prepare(
        &self,
        connection: &Object,
        is_prepared: bool,
        sql: &'static Sql,
    ) -> Result<Option<Statement>, tokio_postgres::Error> {
        if !is_prepared {
            return Ok(None);
        }
        let sql = self.statements.get(sql);
        connection.prepare_typed_cached(&sql.text, &sql.types).await.map(Some)
    }

    /// Sends a statement at the first poll: prepared, or else typed and unnamed.
    pub(crate) async fn run(
        &self,
        client: &Client,
        sql: &'static Sql,
        statement: Option<&Statement>,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        match statement {
            Some(statement) => client.query(statement, params).await,
            None => {
                let sql = self.statements.get(sql);
                client.query_typed(&sql.text, &typed(sql, params)).await
            }
        }
    }

    /// The same for a write that returns no rows: how many it reports.
    pub(crate) async fn execute(
        &self,
        client: &Client,
        sql: &'static Sql,
        statement: Option<&Statement>,
        params: &[Param<'_>],
    ) -> Result<u64, tokio_postgres::Error> {
        match statement {
            Some(statement) => client.execute(statement, params).await,
            None => {
                let sql = self.statements.get(sql);
                client.execute_typed(&sql.text, &typed(sql, params)).await
            }
        }
    }
}

fn typed<'a>(sql: &Rendered, params: &[Param<'a>]) -> Vec<(Param<'a>, Type)> {
    params.iter().copied().zip(sql.types.iter().cloned()).collect()
}
