//! Whether an account is in use, and how it is kept from being used.

use tokio_postgres::types::Type;

use super::connection::{AdminConnection, Transaction};
use crate::{
    Access, OpenStoreError, PostgresStoreConfig,
    account::ownership::{OWNER, OwnerRow, Process},
};

/// A transaction that holds the owner's row of an account that no process has open: it waited for the
/// transactions that its owner had open, and keeps others from taking the account over.
pub(super) struct Claimed<'a> {
    pub(super) transaction: Transaction<'a>,
    pub(super) account_id: i64,
}

/// Whether the account `a` of a query has an owner that is alive.
pub(super) const IS_ALIVE: &str = "\
EXISTS (SELECT FROM {schema}.account_handles h JOIN {schema}.heartbeats b ON b.id = h.heartbeat_id
        WHERE h.account_id = a.id AND b.alive_until > clock_timestamp())";

/// How many commits the account `a` of a query has, in all of its lanes.
pub(super) const COMMITS: &str = "\
(SELECT coalesce(sum(l.commits), 0)::int8 FROM {schema}.account_lanes l WHERE l.account_id = a.id)";

const LOCK_OWNER: &str =
    "SELECT account_id FROM {schema}.account_owners WHERE account_id = $1 FOR UPDATE";

/// A claim of an account that was never owned waits for it, for it refers to this row.
const LOCK_ACCOUNT: &str = "SELECT id FROM {schema}.accounts WHERE id = $1 FOR UPDATE";

impl<'a> Claimed<'a> {
    /// Fails when the account has an owner that is alive.
    pub(super) async fn lock(
        admin: &'a AdminConnection,
        config: &PostgresStoreConfig,
    ) -> Result<Claimed<'a>, OpenStoreError> {
        let (account_id, _) = admin.account(config, Access::default()).await?;
        let transaction = admin.write().await?;
        let claimed = Self { transaction, account_id };
        // First without a lock, for which a bot that is running would wait.
        claimed.check_free(&config.account).await?;
        // In the order of the engine: the owner, then the account. The first may have been made in between.
        for sql in [LOCK_OWNER, LOCK_ACCOUNT, LOCK_OWNER] {
            let locked = claimed.transaction.query(sql, &[(&account_id, Type::INT8)]).await;
            locked.map_err(|error| OpenStoreError::refused(error, "locking the account"))?;
        }
        claimed.check_free(&config.account).await?;
        Ok(claimed)
    }

    async fn check_free(&self, account: &str) -> Result<(), OpenStoreError> {
        let rows = self.transaction.query_sql(&OWNER, &[&self.account_id]).await;
        let rows = rows.map_err(|error| OpenStoreError::refused(error, "reading the owner"))?;
        if rows.is_empty() {
            return Err(OpenStoreError::AccountNotFound { account: account.to_owned() });
        }
        let owner = OwnerRow::parse(&rows)?;
        // A process that lives never counts as ended (rule 27).
        if !owner.is_alive() || owner.has_ended(&Process::current(), None) {
            return Ok(());
        }
        let (account, since) = (account.to_owned(), owner.since);
        Err(OpenStoreError::OwnerAlive { account, owner: owner.name, since })
    }
}
