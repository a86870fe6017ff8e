//! Connections of an operator's function, and its transactions.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use deadpool_postgres::Object;
use tokio_postgres::{
    CopyInSink, CopyOutStream, Row, RowStream,
    types::{ToSql, Type},
};

use super::table_counts::TableCount;
use crate::{
    Access, DatabaseError, OpenStoreError, PoolSettings, PostgresStoreConfig,
    account::{
        cipher::SealedCipher,
        find,
        handle::{parts, statements},
    },
    crypto_store::{CRYPTO_STORE, TABLES},
    postgres::{
        database::{self, Database, Limits, begin, typed},
        schema::Schema,
        statement::{Sql, Statements, Table, named},
        transaction_connection::TransactionConnection,
    },
};

/// A parameter with its type, so that no statement has to be prepared: a pooler may be behind.
pub(super) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// Without the time limits of the role: a whole table may take longer. But none waits long for a lock, which
/// would keep those behind it waiting.
const LIMITS: Limits = Limits {
    statement: None,
    lock: Some(Duration::from_secs(10)),
    idle: Some(Duration::from_secs(60)),
};

/// A way to the database, without an account.
pub(super) struct AdminConnection {
    pub(super) database: Database,
}

/// A transaction that is open; rolled back, with its connection, when it is dropped.
pub(super) struct Transaction<'a> {
    connection: TransactionConnection,
    database: &'a Database,
    /// Of a transaction that writes: how many commits had not waited for their standby before it.
    unreplicated: Option<u64>,
}

impl AdminConnection {
    pub(super) fn new(config: &PostgresStoreConfig) -> Result<Self, OpenStoreError> {
        let statements = Statements::new(Schema::new(&config.schema)?, statements(&[]));
        let mut config = config.clone().pool(PoolSettings { max_size: 2, ..config.pool });
        config.application_name.get_or_insert_with(|| "matrix-postgres".to_owned());
        let pool = config.build_pool()?;
        Ok(Self { database: Database::new(pool, Arc::new(statements), &config.timeouts) })
    }

    pub(super) fn schema(&self) -> &Schema {
        self.database.statements().schema()
    }

    /// The account's number and its sealed cipher, after the checks that opening makes for this access: of
    /// the server, the role and the schema's version.
    pub(super) async fn account(
        &self,
        config: &PostgresStoreConfig,
        access: Access,
    ) -> Result<(i64, SealedCipher), OpenStoreError> {
        let not_found = || OpenStoreError::AccountNotFound { account: config.account.clone() };
        self.check(config, access).await?.ok_or_else(not_found)
    }

    /// The same without an error for an account that does not exist.
    pub(super) async fn check(
        &self,
        config: &PostgresStoreConfig,
        access: Access,
    ) -> Result<Option<(i64, SealedCipher)>, OpenStoreError> {
        let config = config.clone().access(access).run_migrations(false);
        let found = find::look_up(&self.database, &config, &parts(&[&CRYPTO_STORE])).await;
        found.map_err(|error| match error {
            OpenStoreError::MigrationsPending { part: "account", found: 0, .. } => {
                OpenStoreError::SchemaNotFound { schema: self.schema().name().to_owned() }
            }
            error => error,
        })
    }

    /// A connection. Transient failures are retried.
    pub(super) async fn connect(&self) -> Result<Object, OpenStoreError> {
        let connect = || self.database.connect();
        self.database.retry().run("connecting", OpenStoreError::is_retryable, connect).await
    }

    /// A transaction that reads one snapshot, of any server.
    pub(super) async fn read(&self) -> Result<Transaction<'_>, OpenStoreError> {
        self.begin_read(self.connect().await?).await
    }

    /// The same without a retry, for callers that retry themselves.
    pub(super) async fn read_once(&self) -> Result<Transaction<'_>, OpenStoreError> {
        self.begin_read(self.database.connect().await?).await
    }

    /// A transaction that writes.
    pub(super) async fn write(&self) -> Result<Transaction<'_>, OpenStoreError> {
        let unreplicated = Some(self.database.unreplicated_commits());
        let transaction = self.begin(self.connect().await?, &begin(&LIMITS), unreplicated).await?;
        // Fails if a pooler has lost the BEGIN.
        transaction.query("SELECT {schema}.require_begun()", &[]).await?;
        Ok(transaction)
    }

    async fn begin_read(&self, connection: Object) -> Result<Transaction<'_>, OpenStoreError> {
        let begin = format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {}", LIMITS.set());
        self.begin(connection, &begin, None).await
    }

    async fn begin(
        &self,
        connection: Object,
        begin: &str,
        unreplicated: Option<u64>,
    ) -> Result<Transaction<'_>, OpenStoreError> {
        let connection = TransactionConnection::new(connection);
        connection.get()?.batch_execute(begin).await.map_err(DatabaseError::from)?;
        Ok(Transaction { connection, database: &self.database, unreplicated })
    }
}

/// The name of the tool's statements in the server's views.
const SENDER: &str = "matrix-postgres";

impl Transaction<'_> {
    /// Runs a statement, in which `{schema}` stands for the schema.
    pub(super) async fn query(
        &self,
        template: &str,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, DatabaseError> {
        let sql = named(self.schema().qualify(template).trim(), SENDER);
        Ok(self.client()?.query_typed(&sql, params).await?)
    }

    /// The same for many rows, which are not held in memory.
    pub(super) async fn stream(
        &self,
        template: &str,
        params: &[Param<'_>],
    ) -> Result<Pin<Box<RowStream>>, DatabaseError> {
        let sql = named(self.schema().qualify(template).trim(), SENDER);
        let params = params.iter().cloned();
        Ok(Box::pin(self.client()?.query_typed_raw(&sql, params).await?))
    }

    /// The same for a statement that answers with one row.
    pub(super) async fn query_one(
        &self,
        template: &str,
        params: &[Param<'_>],
    ) -> Result<Row, DatabaseError> {
        let mut rows = self.query(template, params).await?;
        rows.pop().ok_or_else(|| DatabaseError::broken("a statement returned no row"))
    }

    /// The same for a write: how many rows it has changed.
    pub(super) async fn execute(
        &self,
        template: &str,
        params: &[Param<'_>],
    ) -> Result<u64, DatabaseError> {
        let sql = named(self.schema().qualify(template).trim(), SENDER);
        Ok(self.client()?.execute_typed(&sql, params).await?)
    }

    /// Runs a statement of the engine.
    pub(super) async fn query_sql(
        &self,
        sql: &'static Sql,
        params: &[database::Param<'_>],
    ) -> Result<Vec<Row>, DatabaseError> {
        let sql = self.database.statements().get(sql);
        Ok(self.client()?.query_typed(&sql.text, &typed(sql, params)).await?)
    }

    /// The same for a write: how many rows it has changed.
    pub(super) async fn execute_sql(
        &self,
        sql: &'static Sql,
        params: &[database::Param<'_>],
    ) -> Result<u64, DatabaseError> {
        let sql = self.database.statements().get(sql);
        Ok(self.client()?.execute_typed(&sql.text, &typed(sql, params)).await?)
    }

    /// How many rows of each table the account has.
    pub(super) async fn count_rows(
        &self,
        account_id: i64,
    ) -> Result<Vec<TableCount>, DatabaseError> {
        let mut counts = Vec::new();
        for Table { name, .. } in TABLES {
            let sql = format!("SELECT count(*) FROM {{schema}}.{name} WHERE account_id = $1");
            let row = self.query_one(&sql, &[(&account_id, Type::INT8)]).await?;
            let rows = row.try_get::<_, i64>(0)?.unsigned_abs();
            counts.push(TableCount { table: name, rows });
        }
        Ok(counts)
    }

    /// Ends it. Every other error of `COMMIT` than [`OpenStoreError::NotReplicated`] leaves the outcome
    /// unknown: a pooler, too, sends errors in the server's format.
    pub(super) async fn commit(self) -> Result<(), OpenStoreError> {
        let committed = self.client()?.batch_execute("COMMIT").await;
        committed.map_err(|error| {
            let error = DatabaseError::from(error);
            DatabaseError::broken(format!(
                "the outcome of COMMIT is unknown ({error}): check whether the change was made, and run \
                 the command again if it was not"
            ))
        })?;
        self.connection.release();
        match self.unreplicated {
            Some(before) if self.database.unreplicated_commits() != before => {
                Err(OpenStoreError::NotReplicated)
            }
            _ => Ok(()),
        }
    }

    /// Runs statements without parameters.
    pub(super) async fn batch(&self, template: &str) -> Result<(), DatabaseError> {
        Ok(self.client()?.batch_execute(&self.schema().qualify(template)).await?)
    }

    /// A table's name with its schema, quoted.
    pub(super) fn qualified(&self, table: &str) -> String {
        self.schema().qualify(&format!("{{schema}}.{table}"))
    }

    /// The rows of a `COPY … TO STDOUT`.
    pub(super) async fn copy_out(&self, template: &str) -> Result<CopyOutStream, DatabaseError> {
        Ok(self.client()?.copy_out(&self.schema().qualify(template)).await?)
    }

    /// Where the rows of a `COPY … FROM STDIN` go.
    pub(super) async fn copy_in(&self, sql: &str) -> Result<CopyInSink<Bytes>, DatabaseError> {
        Ok(self.client()?.copy_in(sql).await?)
    }

    fn schema(&self) -> &Schema {
        self.database.statements().schema()
    }

    fn client(&self) -> Result<&Object, DatabaseError> {
        self.connection.get().map_err(|_| DatabaseError::broken("a connection was given back"))
    }
}
