//! The application's own statements within the transaction.

use std::{fmt, sync::Arc};

use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

use super::{Query, Scope};
use crate::Error;

/// The transaction that [`atomically`](crate::PostgresStores::atomically) has open, for the
/// application's own rows: they are committed together with the keys, or not at all.
///
/// Tables outside of the crate's schema are found by the connection's `search_path`; the role must
/// be allowed to use them. Statements are sent unnamed, with parameter types, and not before the
/// server has answered `BEGIN`.
///
/// `COMMIT`, `ROLLBACK` and other statements that end the transaction are refused with
/// [`Error::TransactionControl`], and `atomically` fails. Savepoints may be used. Rolling back to
/// one that is older than a save in a store is refused in the same way, because it would undo the
/// save.
///
/// A lost connection is replaced, and everything sent again, as long as the application has no
/// result of a statement of its own. Afterwards nothing is repeated: the whole transaction is rolled
/// back, and the error is returned.
///
/// A `Transaction` does not keep the transaction open: that ends with its `atomically`, and from
/// then on [`query`](Self::query) and [`execute`](Self::execute) return [`Error::NotInAtomically`].
pub struct Transaction(Arc<Scope>);

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").finish_non_exhaustive()
    }
}

impl Transaction {
    pub(crate) fn new(scope: Arc<Scope>) -> Self {
        Self(scope)
    }

    /// Runs a statement and returns its rows; it sees everything that was saved before. Once
    /// polled, it is run even if this future is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Database`], [`Error::TransactionControl`] and others; afterwards the transaction can
    /// only be rolled back. [`Error::NotInAtomically`] when the transaction has ended,
    /// [`Error::AtomicallyTimeout`] when it took too long.
    ///
    /// ```no_run
    /// # async fn example(
    /// #     stores: matrix_sdk_postgres::PostgresStores,
    /// # ) -> Result<(), matrix_sdk_postgres::Error> {
    /// use matrix_sdk_postgres::{Error, tokio_postgres::types::Type};
    ///
    /// stores
    ///     .atomically(async {
    ///         // Save in the stores, then:
    ///         let message = r#"{"text": "hello"}"#;
    ///         let transaction = stores.transaction().await?;
    ///         let insert = "INSERT INTO outbox (body) VALUES ($1) RETURNING id";
    ///         let ids = transaction.query(insert, &[(&message, Type::TEXT)]).await?;
    ///         Ok::<(), Error>(())
    ///     })
    ///     .await
    /// # }
    /// ```
    pub async fn query(
        &self,
        sql: &str,
        params: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, Error> {
        Ok(self.0.run_application(Query::application(sql, params)?).await?.0)
    }

    /// Runs a statement and returns how many rows it inserted, updated, deleted or returned; otherwise
    /// the same as [`query`](Self::query).
    ///
    /// # Errors
    ///
    /// Those of [`query`](Self::query).
    ///
    /// ```no_run
    /// # async fn example(
    /// #     stores: matrix_sdk_postgres::PostgresStores,
    /// # ) -> Result<(), matrix_sdk_postgres::Error> {
    /// use matrix_sdk_postgres::{Error, tokio_postgres::types::Type};
    ///
    /// let sent = stores
    ///     .atomically(async {
    ///         let transaction = stores.transaction().await?;
    ///         let sql = "DELETE FROM outbox WHERE id <= $1";
    ///         let deleted = transaction.execute(sql, &[(&7_i64, Type::INT8)]).await?;
    ///         Ok::<u64, Error>(deleted)
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub async fn execute(
        &self,
        sql: &str,
        params: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<u64, Error> {
        Ok(self.0.run_application(Query::application(sql, params)?).await?.1)
    }
}
