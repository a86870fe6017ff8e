//! Whether an account is in use, and how it is kept from being used.

use std::time::SystemTime;

use tokio_postgres::types::Type;

use super::connection::{AdminConnection, Transaction};
use crate::{DatabaseError, OpenStoreError};

/// A transaction that holds the owner's row of an account that nobody has open: it waited for the
/// transactions that its owner had open, and keeps others from taking the account over.
pub(super) struct Claimed<'a> {
    pub(super) transaction: Transaction<'a>,
    pub(super) account_id: i64,
}

const OWNER: &str = "\
SELECT o.name, o.since,
    EXISTS (SELECT FROM {schema}.account_handles h JOIN {schema}.heartbeats b ON b.id = h.heartbeat_id
            WHERE h.account_id = $1 AND b.alive_until > clock_timestamp())
FROM {schema}.account_owners o WHERE o.account_id = $1";

impl<'a> Claimed<'a> {
    /// Fails when the account has an owner that is alive.
    pub(super) async fn lock(
        admin: &'a AdminConnection,
        account: &str,
    ) -> Result<Claimed<'a>, OpenStoreError> {
        let transaction = admin.write().await?;
        let account_id = transaction.account_id(account).await?;
        let claimed = Self { transaction, account_id };
        // First without a lock, for which a bot that is running would wait.
        claimed.check_free(account, OWNER).await?;
        // The account's own row, too: an account that was never owned has no other.
        let sql = "SELECT FROM {schema}.accounts WHERE id = $1 FOR UPDATE";
        let locked = claimed.transaction.query(sql, &[(&account_id, Type::INT8)]).await;
        locked.map_err(|error| OpenStoreError::refused(error, "locking the account"))?;
        claimed.check_free(account, &[OWNER, " FOR UPDATE OF o"].concat()).await?;
        Ok(claimed)
    }

    async fn check_free(&self, account: &str, sql: &str) -> Result<(), OpenStoreError> {
        let rows = self.transaction.query(sql, &[(&self.account_id, Type::INT8)]).await;
        let rows = rows.map_err(|error| OpenStoreError::refused(error, "reading the owner"))?;
        let Some(row) = rows.first() else { return Ok(()) };
        if !row.try_get::<_, bool>(2).map_err(DatabaseError::from)? {
            return Ok(());
        }
        let owner = row.try_get(0).map_err(DatabaseError::from)?;
        let since: SystemTime = row.try_get(1).map_err(DatabaseError::from)?;
        Err(OpenStoreError::OwnerAlive { account: account.to_owned(), owner, since })
    }
}
