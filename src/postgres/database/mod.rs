//! The pool, and how statements are sent: unnamed, with parameter types, when a connection sends them for the
//! first time, on a foreign pool and behind poolers; else prepared.

mod autocommit;
mod query;
mod stream;

pub(crate) use self::autocommit::{Limits, begin};

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use deadpool::managed::Manager as _;
use deadpool_postgres::{ClientWrapper, Object, Pool, PoolError, Status, Timeouts};
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
        metrics,
        pool::pool_error,
        retry::Retry,
        shared_connection::{self, SharedConnections},
        statement::{Rendered, Sql, Statements},
    },
};

/// A parameter of a read.
pub(crate) type Param<'a> = &'a (dyn ToSql + Sync);

/// A pool, the statements of one schema, and how to send them.
#[derive(Clone)]
pub(crate) struct Database {
    /// `Some` for a pool that this crate built. Declared before `pool`, so that it is dropped
    /// first: see [`Connector::of`].
    connector: Option<Connector>,
    pool: Pool,
    shared: Arc<SharedConnections>,
    statements: Arc<Statements>,
    /// Whether statements are prepared: unless it is configured otherwise, and never on a foreign pool, which
    /// may lead to a pooler.
    prepares: bool,
    target: Target,
    limits: timeouts::Timeouts,
    /// Whether to wait for a connection, or make one, when none is idle.
    waits: bool,
}

/// How a server is reached. Identifies a database where no stored value can, because a copy of the
/// database has the same values.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    /// The connection settings.
    Server(String),
    /// A foreign pool, by its address.
    Pool(usize),
}

impl Database {
    pub(crate) fn new(
        pool: Pool,
        statements: Arc<Statements>,
        limits: &timeouts::Timeouts,
    ) -> Self {
        let connector = Connector::of(&pool);
        let shared = SharedConnections::of(&pool);
        let target = match &connector {
            Some(connector) => Target::Server(connector.target()),
            None => Target::Pool(shared_connection::address(&pool)),
        };
        let prepares = connector.as_ref().is_some_and(Connector::prepares_statements);
        let limits = *limits;
        Self { connector, pool, shared, statements, prepares, target, limits, waits: true }
    }

    /// The same for a caller with an alternative: returns [`Error::PoolTimeout`] at once when no
    /// connection is idle.
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

    /// The number of COMMITs on this pool that did not wait for their synchronous standby; always 0
    /// on a foreign pool, whose notices cannot be read.
    pub(crate) fn unreplicated_commits(&self) -> u64 {
        self.connector.as_ref().map_or(0, Connector::unreplicated_commits)
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    pub(crate) fn statement_timeout(&self) -> Duration {
        self.limits.statement
    }

    /// How long to wait for the answers to this many statements. Longer than the server's own
    /// limit, which should apply first: this one is for a server that does not answer.
    pub(crate) fn response_timeout(&self, statements: u32) -> Duration {
        let limit = self.limits.statement.saturating_mul(statements);
        limit.saturating_add(limit / 4)
    }

    /// The retry policy, for attempts that had no effect.
    pub(crate) fn retry(&self) -> Retry {
        Retry::new(self.limits.retry)
    }

    pub(crate) fn idle_timeout(&self) -> Duration {
        self.limits.transaction_idle
    }

    /// A connection outside of the pool, so that it waits for no other user.
    pub(crate) async fn connect_unpooled(&self) -> Result<ClientWrapper, Error> {
        self.pool.manager().create().await.map_err(|error| connect::login_error(&error).into())
    }

    pub(crate) fn pool_status(&self) -> Status {
        self.pool.status()
    }

    pub(crate) fn close_pool(&self) {
        self.pool.close();
    }

    /// Takes a connection from the pool; returns the errors of opening a store.
    pub(crate) async fn connect(&self) -> Result<Object, OpenStoreError> {
        self.pool.get().await.map_err(|error| match error {
            PoolError::Backend(error) => connect::classify(&error),
            error => OpenStoreError::Store(pool_error(error)),
        })
    }

    /// Takes a connection from the pool.
    pub(crate) async fn connection(&self) -> Result<Object, Error> {
        self.take(self.timeouts()).await
    }

    async fn take(&self, timeouts: Timeouts) -> Result<Object, Error> {
        if !self.waits && self.pool.status().available == 0 {
            return Err(Error::PoolTimeout);
        }
        let began = Instant::now();
        let taken = self.pool.timeout_get(&timeouts).await.map_err(pool_error);
        metrics::pool_wait(began, taken.is_err());
        taken
    }

    /// The prepared statement, or `None` when it is sent unnamed.
    pub(crate) fn prepared(&self, connection: &Object, sql: &'static Sql) -> Option<Statement> {
        self.prepares.then(|| self.statements.prepared.get(connection, sql.name)).flatten()
    }

    /// Awaits the answer to statements sent on a connection, and prepares those that are not, for their next use,
    /// in the same round trip. No others: to prepare a statement, the server waits for locks of its tables.
    pub(crate) async fn join_with_prepare<T>(
        &self,
        connection: &Object,
        statements: impl IntoIterator<Item = &'static Sql>,
        answer: impl Future<Output = T>,
    ) -> T {
        let prepared = statements.into_iter().map(|sql| self.prepare(connection, sql));
        // Polled first, and so sent before BEGIN: in a transaction, one that fails would end it.
        let prepared = timeout(self.limits.statement, join_all(prepared));
        join(prepared, answer).await.1
    }

    /// Prepares the statement, unless it is or is being prepared.
    pub(crate) async fn prepare(&self, connection: &Object, sql: &'static Sql) {
        if !self.prepares {
            return;
        }
        let Some(preparing) = self.statements.prepared.reserve(connection, sql.name) else {
            return;
        };
        let Rendered { text, types } = self.statements.get(sql);
        match connection.prepare_typed(text, types).await {
            Ok(statement) => preparing.finish(statement),
            Err(error) => {
                let error = DatabaseError::from(error);
                debug!(statement = sql.name, %error, "a statement could not be prepared");
            }
        }
    }

    /// Sends a statement on a connection at the first poll, outside of a transaction, and prepares it for its
    /// next use: planning it takes the server longer than running it.
    pub(crate) async fn run_on(
        &self,
        connection: &Object,
        sql: &'static Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let prepared = self.prepared(connection, sql);
        let answer = self.run(connection, sql, prepared.as_ref(), params);
        self.join_with_prepare(connection, [sql], answer).await
    }

    /// Sends a statement at the first poll: prepared, or unnamed with parameter types.
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

    /// The same for a write without result rows; returns the number of affected rows.
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

/// The parameters with their types, for a statement without a name.
pub(crate) fn typed<'a>(sql: &Rendered, params: &[Param<'a>]) -> Vec<(Param<'a>, Type)> {
    params.iter().copied().zip(sql.types.iter().cloned()).collect()
}
