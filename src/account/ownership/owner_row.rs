//! The rows of an account's owner and lanes in the database.

use std::time::SystemTime;

use deadpool_postgres::Object;
use tokio_postgres::{Row, types::Type};
use tracing::debug;

use super::{
    Loss,
    process::{Place, Process},
    tokens::{OwnershipState, Position},
};
use crate::{
    DatabaseError, Error,
    postgres::{database::Database, statement::Sql},
};

/// The owner of the account with this id.
macro_rules! owner_of {
    ($id:literal) => {
        concat!(
            "
SELECT o.token, o.name, o.since,
    coalesce(p.alive, 0), l.lane, l.commits, l.last_transaction,
    p.process, p.host, p.pid, p.started, o.instance
FROM {schema}.accounts a
LEFT JOIN {schema}.account_owners o ON o.account_id = ",
            $id,
            "
LEFT JOIN {schema}.account_lanes l ON l.account_id = ",
            $id,
            "
LEFT JOIN LATERAL (
    SELECT b.process, b.host, b.pid, b.started, count(*) OVER () AS alive
    FROM {schema}.account_handles h JOIN {schema}.heartbeats b ON b.id = h.heartbeat_id
    WHERE h.account_id = ",
            $id,
            " AND b.alive_until > clock_timestamp()
    LIMIT 1) p ON true
WHERE a.id = ",
            $id,
        )
    };
}

pub(crate) static OWNER: Sql = Sql::new("account_owners.get", owner_of!("$1"), &[Type::INT8]);

/// The same by the account's name, for an opening that does not know the id yet.
pub(crate) static OWNER_BY_NAME: Sql = Sql::new(
    "account_owners.get_by_name",
    owner_of!("(SELECT id FROM {schema}.accounts WHERE name = $1)"),
    &[Type::TEXT],
);

#[derive(Debug, Clone)]
pub(crate) struct OwnerRow {
    /// `None` for an account that was never owned.
    pub(crate) token: Option<Vec<u8>>,
    pub(crate) name: String,
    pub(crate) since: SystemTime,
    /// How many of its processes have a heartbeat: one, or none.
    alive: i64,
    /// The process of that heartbeat.
    process: Option<Process>,
    instance: Option<String>,
    lanes: Vec<(String, Position)>,
}

impl OwnerRow {
    pub(crate) async fn read(database: &Database, account_id: i64) -> Result<Self, Error> {
        Self::parse(&database.query_primary(&OWNER, &[&account_id]).await?)
    }

    /// The same before it is needed, with the statements of the connection; `None` if that fails.
    pub(crate) async fn read_early(database: &Database, account_id: i64) -> Option<Self> {
        let rows = database.autocommit_with_prepare(&OWNER, &[&account_id]).await;
        Self::early(rows.and_then(|rows| Self::parse(&rows)))
    }

    /// The owner that was read before it is needed; `None` if that failed.
    pub(crate) fn early(read: Result<Self, Error>) -> Option<Self> {
        read.inspect_err(|error| debug!(%error, "the owner could not be read early")).ok()
    }

    /// The same on a connection, by the account's name; nothing is retried. It may come from a standby that
    /// lags behind: a claim takes effect only if the token is the current one.
    pub(crate) async fn read_by_name(
        database: &Database,
        connection: &Object,
        name: &str,
    ) -> Result<Self, Error> {
        Self::parse(&database.run_on(connection, &OWNER_BY_NAME, &[&name]).await?)
    }

    /// The answer to [`OWNER`] or [`OWNER_BY_NAME`]: a row for each lane, or one without.
    pub(crate) fn parse(rows: &[Row]) -> Result<Self, Error> {
        let row =
            rows.first().ok_or_else(|| DatabaseError::permanent("the account was deleted"))?;
        let lanes = rows.iter().filter_map(|row| lane(row).transpose());
        Ok(Self {
            token: row.try_get(0)?,
            name: row.try_get::<_, Option<String>>(1)?.unwrap_or_default(),
            since: row.try_get::<_, Option<SystemTime>>(2)?.unwrap_or(SystemTime::UNIX_EPOCH),
            alive: row.try_get(3)?,
            process: process(row)?,
            instance: row.try_get(11)?,
            lanes: lanes.collect::<Result<_, Error>>()?,
        })
    }

    /// Whether the owner counts as alive, by its heartbeat.
    pub(crate) fn is_alive(&self) -> bool {
        self.alive > 0
    }

    /// Whether the owner has certainly ended, whatever its heartbeat: its process is gone, or
    /// another process, the opener, has its instance.
    pub(crate) fn has_ended(&self, opener: &Process, instance: Option<&str>) -> bool {
        if self.process.as_ref().is_some_and(|process| process.id == opener.id) {
            return false;
        }
        let ends_with = |process| self.alive == 1 && opener.sees_the_end_of(process);
        (instance.is_some() && self.instance.as_deref() == instance)
            || self.process.as_ref().is_some_and(ends_with)
    }

    pub(crate) fn position(&self, lane: &str) -> Position {
        let mut lanes = self.lanes.iter();
        lanes.find(|(name, _)| name == lane).map(|(_, position)| *position).unwrap_or_default()
    }

    /// How many commits the account has, in all of its lanes.
    pub(crate) fn commits(&self) -> i64 {
        self.lanes.iter().map(|(_, position)| position.commits).sum()
    }

    /// The loss that the row shows to an owner with this state; `is_ours` accepts the tokens that
    /// the account may have.
    pub(crate) fn loss(
        &self,
        known: &OwnershipState,
        is_ours: impl FnOnce(&[u8]) -> bool,
    ) -> Option<Loss> {
        let token = self.token.as_deref().unwrap_or_default();
        if self.is_behind(known) || known.tokens.is_former(token) {
            return Some(Loss::DatabaseRolledBack);
        }
        (!is_ours(token)).then(|| Loss::Superseded { by: self.name.clone(), since: self.since })
    }

    /// Whether a lane has fewer commits than its owner has seen.
    pub(crate) fn is_behind(&self, known: &OwnershipState) -> bool {
        known.lanes().any(|(lane, seen)| self.position(lane).commits < seen.commits)
    }
}

fn process(row: &Row) -> Result<Option<Process>, Error> {
    let Some(id) = row.try_get(7)? else { return Ok(None) };
    let place = match (row.try_get(8)?, row.try_get(9)?, row.try_get(10)?) {
        (Some(host), Some(pid), Some(started)) => Some(Place { host, pid, started }),
        _ => None,
    };
    Ok(Some(Process { id, place }))
}

fn lane(row: &Row) -> Result<Option<(String, Position)>, Error> {
    let Some(lane) = row.try_get(4)? else { return Ok(None) };
    let position = Position { commits: row.try_get(5)?, last: transaction_id(row.try_get(6)?) };
    Ok(Some((lane, position)))
}

/// An id of another length is not from this crate: it equals no id of a commit.
pub(crate) fn transaction_id(bytes: Option<&[u8]>) -> Option<[u8; 16]> {
    bytes.map(|bytes| bytes.try_into().unwrap_or_default())
}
