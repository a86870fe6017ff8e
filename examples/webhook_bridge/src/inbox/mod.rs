//! The bridge's own tables: the sync position, undelivered events, rooms and gaps.

mod dead_letters;
mod gaps;
mod invitations;
mod late_keys;
mod messages;
mod migrate;
mod origins;
#[cfg(test)]
mod plans;
mod queue;
mod record;
mod replays;
mod rooms;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use matrix_sdk_postgres::{
    self as store,
    deadpool_postgres::{
        self as pool, Object, Pool,
        tokio_postgres::{
            Row,
            types::{ToSql, Type},
        },
    },
};
use tokio::sync::Mutex;

pub use self::{
    dead_letters::DeadLetter,
    gaps::{Gap, Pages},
    invitations::Pending,
    late_keys::{SESSIONS, WaitingSession},
    messages::{SealedMessage, Slice, Target},
    migrate::{check, migrate},
    origins::Origin,
    queue::{Counts, MAX_REJECTIONS, Queued},
    record::{NewGap, RoomChange, SyncRecord},
    replays::MessageIndex,
    rooms::KnownRoom,
};
use crate::errors::BridgeError;

/// An event to be delivered, as received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub event_id: String,
    pub session_id: Option<String>,
    pub json: String,
}

/// The rows of one account.
#[derive(Clone)]
pub struct Inbox {
    pool: Pool,
    account: String,
    /// The bot's user, which may have several accounts, one after the other.
    user: String,
    /// Held while a message is stored for the API.
    sealing: Arc<Mutex<()>>,
    /// When the first run of this process began.
    began: Arc<OnceLock<Instant>>,
}

impl Inbox {
    /// The account has the name of its user; see [`Self::of_user`].
    pub fn new(pool: Pool, account: &str) -> Self {
        let account = account.to_owned();
        Self {
            pool,
            user: account.clone(),
            account,
            sealing: Arc::default(),
            began: Arc::default(),
        }
    }

    pub fn of_user(self, user: &str) -> Self {
        Self { user: user.to_owned(), ..self }
    }

    /// Check that the database responds.
    pub async fn ping(&self) -> Result<(), BridgeError> {
        self.connection().await?.simple_query("SELECT 1").await?;
        Ok(())
    }

    async fn connection(&self) -> Result<Object, BridgeError> {
        Ok(self.pool.get().await?)
    }
}

/// Runs a statement whose `$1` is this account or user, and whose `$2` and `$3` are the columns of these
/// pairs, unless there are none.
async fn run_for_pairs(
    transaction: &impl Transaction,
    sql: &str,
    owner: &str,
    pairs: impl Iterator<Item = (String, String)>,
) -> Result<(), BridgeError> {
    let (first, second): (Vec<_>, Vec<_>) = pairs.unzip();
    if first.is_empty() {
        return Ok(());
    }
    let values: [Value<'_>; 3] =
        [(&owner, Type::TEXT), (&first, Type::TEXT_ARRAY), (&second, Type::TEXT_ARRAY)];
    transaction.run(sql, &values).await?;
    Ok(())
}

/// A statement parameter with its type.
type Value<'a> = (&'a (dyn ToSql + Sync), Type);

/// A transaction for the bridge's statements: one of the pool's, or the key store's.
pub trait Transaction {
    async fn run(&self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, BridgeError>;
}

impl Transaction for pool::Transaction<'_> {
    async fn run(&self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, BridgeError> {
        Ok(self.query_typed(sql, values).await?)
    }
}

impl Transaction for store::Transaction {
    async fn run(&self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, BridgeError> {
        Ok(self.query(sql, values).await?)
    }
}

/// An event and its position in its room.
struct Placed<'a> {
    room_id: &'a str,
    event: &'a Received,
    position: i64,
    place: i64,
}

/// Insert events; known ones are ignored. Returns the number of new events.
async fn insert_events(
    transaction: &impl Transaction,
    account: &str,
    events: &[Placed<'_>],
) -> Result<u64, BridgeError> {
    /// Limits the size of a statement: an event has up to 64 kB.
    const ROWS: usize = 100;
    const INSERT: &str = "
        WITH new AS (
            INSERT INTO webhook_bridge.events
                (account, room_id, event_id, session_id, event, position, place)
            SELECT $1, * FROM UNNEST($2, $3, $4, $5, $6, $7)
            ON CONFLICT (account, room_id, event_id) DO NOTHING
            RETURNING true)
        SELECT count(*) FROM new";
    let mut inserted = 0;
    for chunk in events.chunks(ROWS) {
        let room_ids: Vec<_> = chunk.iter().map(|placed| placed.room_id).collect();
        let event_ids: Vec<_> = chunk.iter().map(|placed| &placed.event.event_id).collect();
        let session_ids: Vec<_> = chunk.iter().map(|placed| &placed.event.session_id).collect();
        let bodies: Vec<_> = chunk.iter().map(|placed| placed.event.json.as_bytes()).collect();
        let positions: Vec<_> = chunk.iter().map(|placed| placed.position).collect();
        let places: Vec<_> = chunk.iter().map(|placed| placed.place).collect();
        let values: [Value<'_>; 7] = [
            (&account, Type::TEXT),
            (&room_ids, Type::TEXT_ARRAY),
            (&event_ids, Type::TEXT_ARRAY),
            (&session_ids, Type::TEXT_ARRAY),
            (&bodies, Type::BYTEA_ARRAY),
            (&positions, Type::INT8_ARRAY),
            (&places, Type::INT8_ARRAY),
        ];
        let rows = transaction.run(INSERT, &values).await?;
        inserted += rows.iter().map(|row| row.get::<_, i64>(0) as u64).sum::<u64>();
    }
    Ok(inserted)
}

/// Cancel the delivery of redacted events, given as (room, event id), and delete what the API has of them.
async fn cancel_redacted(
    transaction: &impl Transaction,
    account: &str,
    events: &[(&str, &str)],
) -> Result<(), BridgeError> {
    if events.is_empty() {
        return Ok(());
    }
    let sql = "
        UPDATE webhook_bridge.events SET state = 'redacted', event = NULL, done_at = now()
        FROM UNNEST($2, $3) AS redacted (room, event)
        WHERE account = $1 AND room_id = redacted.room AND event_id = redacted.event
          AND state IN ('pending', 'waiting', 'failed')";
    let (rooms, event_ids): (Vec<_>, Vec<_>) = events.iter().copied().unzip();
    let values: [Value<'_>; 3] =
        [(&account, Type::TEXT), (&rooms, Type::TEXT_ARRAY), (&event_ids, Type::TEXT_ARRAY)];
    transaction.run(sql, &values).await?;
    let delete = "
        DELETE FROM webhook_bridge.api_messages
        USING UNNEST($2, $3) AS redacted (room, event)
        WHERE account = $1 AND room_id = redacted.room AND event_id = redacted.event";
    transaction.run(delete, &values).await?;
    Ok(())
}
