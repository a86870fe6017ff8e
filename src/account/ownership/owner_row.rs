//! What the database says of an account's owner.

use std::time::SystemTime;

use tokio_postgres::{Row, types::Type};

use crate::{
    DatabaseError, Error,
    postgres::{database::Database, statement::Sql},
};

pub(crate) static OWNER: Sql = Sql::new(
    "account_owners.get",
    "
SELECT a.id, o.token, o.name, o.since, coalesce(t.commits, 0), t.last_transaction,
    EXISTS (SELECT FROM {schema}.openings s JOIN {schema}.processes p ON p.id = s.process_id
            WHERE s.account_id = $1 AND p.alive_until > clock_timestamp())
FROM {schema}.accounts a
LEFT JOIN {schema}.account_owners o ON o.account_id = a.id
LEFT JOIN {schema}.sync_tokens t ON t.account_id = a.id
WHERE a.id = $1",
    &[Type::INT8],
)
.seen_when_committed();

#[derive(Debug, Clone)]
pub(crate) struct OwnerRow {
    /// `None` for an account that was never owned.
    pub(crate) token: Option<Vec<u8>>,
    pub(crate) name: String,
    pub(crate) since: SystemTime,
    pub(crate) commits: i64,
    pub(crate) last_transaction: Option<Vec<u8>>,
    pub(crate) is_alive: bool,
}

impl OwnerRow {
    pub(crate) async fn read(database: &Database, account_id: i64) -> Result<Self, Error> {
        Self::parse(&database.query_primary(&OWNER, &[&account_id]).await?)
    }

    /// The answer to [`OWNER`].
    pub(crate) fn parse(rows: &[Row]) -> Result<Self, Error> {
        let row = rows.first().ok_or_else(|| DatabaseError::broken("the account was deleted"))?;
        Ok(Self {
            token: row.try_get(1)?,
            name: row.try_get::<_, Option<String>>(2)?.unwrap_or_default(),
            since: row.try_get::<_, Option<SystemTime>>(3)?.unwrap_or(SystemTime::UNIX_EPOCH),
            commits: row.try_get(4)?,
            last_transaction: row.try_get(5)?,
            is_alive: row.try_get(6)?,
        })
    }
}
