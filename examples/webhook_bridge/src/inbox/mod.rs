//! The bridge's own tables: the sync position, undelivered events, rooms and gaps.

mod gaps;
mod migrate;
mod queue;
mod record;
mod rooms;
#[cfg(test)]
mod tests;

use matrix_sdk_postgres::deadpool_postgres::{
    Object, Pool, Transaction, tokio_postgres::types::Type,
};

pub use self::{
    gaps::Gap,
    migrate::migrate,
    queue::{Counts, Queued},
    record::{NewGap, RoomChange, SyncRecord},
    rooms::KnownRoom,
};
use crate::errors::BridgeError;

/// An event to be delivered, as the homeserver sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub event_id: String,
    pub session_id: Option<String>,
    pub json: String,
}

/// One account's part of the tables.
#[derive(Clone)]
pub struct Inbox {
    pool: Pool,
    account: String,
}

impl Inbox {
    pub fn new(pool: Pool, account: &str) -> Self {
        Self { pool, account: account.to_owned() }
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), BridgeError> {
        self.connection().await?.simple_query("SELECT 1").await?;
        Ok(())
    }

    async fn connection(&self) -> Result<Object, BridgeError> {
        Ok(self.pool.get().await?)
    }
}

/// Insert events of one room; those that are known already change nothing. Returns how many were new.
async fn insert_events(
    transaction: &Transaction<'_>,
    account: &str,
    room_id: &str,
    events: &[(Received, i64, i64)],
) -> Result<u64, BridgeError> {
    /// Keeps one statement well below the sizes that a server dislikes: an event has up to 64 kB.
    const ROWS: usize = 100;
    const INSERT: &str = "
        INSERT INTO webhook_bridge.events
            (account, room_id, event_id, session_id, event, position, place)
        SELECT $1, $2, * FROM UNNEST($3, $4, $5, $6, $7)
        ON CONFLICT (account, event_id) DO NOTHING";
    let mut inserted = 0;
    for chunk in events.chunks(ROWS) {
        let event_ids: Vec<_> = chunk.iter().map(|(event, ..)| &event.event_id).collect();
        let session_ids: Vec<_> = chunk.iter().map(|(event, ..)| &event.session_id).collect();
        let bodies: Vec<_> = chunk.iter().map(|(event, ..)| event.json.as_bytes()).collect();
        let positions: Vec<_> = chunk.iter().map(|(_, position, _)| *position).collect();
        let places: Vec<_> = chunk.iter().map(|(_, _, place)| *place).collect();
        inserted += transaction
            .execute_typed(
                INSERT,
                &[
                    (&account, Type::TEXT),
                    (&room_id, Type::TEXT),
                    (&event_ids, Type::TEXT_ARRAY),
                    (&session_ids, Type::TEXT_ARRAY),
                    (&bodies, Type::BYTEA_ARRAY),
                    (&positions, Type::INT8_ARRAY),
                    (&places, Type::INT8_ARRAY),
                ],
            )
            .await?;
    }
    Ok(inserted)
}

/// What its author has taken back before it was delivered is not delivered any more.
async fn forget_redacted(
    transaction: &Transaction<'_>,
    account: &str,
    room_id: &str,
    event_ids: &[String],
) -> Result<(), BridgeError> {
    if event_ids.is_empty() {
        return Ok(());
    }
    let sql = "
        UPDATE webhook_bridge.events SET state = 'redacted', event = NULL, done_at = now()
        WHERE account = $1 AND room_id = $2 AND event_id = ANY($3)
          AND state IN ('pending', 'waiting', 'failed')";
    let values = [
        (&account as _, Type::TEXT),
        (&room_id as _, Type::TEXT),
        (&event_ids as _, Type::TEXT_ARRAY),
    ];
    transaction.execute_typed(sql, &values).await?;
    Ok(())
}
