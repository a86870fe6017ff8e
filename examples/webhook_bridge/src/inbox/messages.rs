//! The messages that the API serves: sealed, and limited in number and age.

use std::time::Duration;

use matrix_sdk_postgres::deadpool_postgres::tokio_postgres::{Row, types::Type};

use super::{Inbox, Value};
use crate::{errors::BridgeError, message::Message};

/// Whose messages are wanted.
pub enum Target {
    Label(String),
    Room(String),
}

/// Which of them: the oldest after `after`, otherwise the newest.
pub struct Slice {
    pub after: Option<i64>,
    pub before: Option<i64>,
    pub limit: i64,
    pub max_age: Duration,
}

#[derive(Debug)]
pub struct SealedMessage {
    pub id: i64,
    pub event_id: String,
    pub room_id: String,
    pub sealed: Vec<u8>,
}

impl Inbox {
    /// Store a message, once, unless it was redacted meanwhile, and delete the oldest ones of its room
    /// beyond `limit`. A lock makes the order of ids that of the commits, so that a cursor skips no message.
    pub async fn store_sealed(
        &self,
        message: &Message,
        sealed: &[u8],
        limit: i64,
    ) -> Result<(), BridgeError> {
        let insert = "
            WITH new AS (
                UPDATE webhook_bridge.events SET sealed = true
                WHERE account = $1 AND room_id = $2 AND event_id = $3 AND state <> 'redacted'
                  AND NOT sealed
                RETURNING true)
            INSERT INTO webhook_bridge.api_messages (account, room_id, event_id, label, sealed)
            SELECT $1, $2, $3, $4, $5 FROM new
            ON CONFLICT (account, room_id, event_id) DO NOTHING";
        let delete = "
            DELETE FROM webhook_bridge.api_messages
            WHERE account = $1 AND room_id = $2 AND id <= (
                SELECT id FROM webhook_bridge.api_messages
                WHERE account = $1 AND room_id = $2 ORDER BY id DESC OFFSET $3 LIMIT 1)";
        let _one_at_a_time = self.sealing.lock().await;
        let values: [Value<'_>; 5] = [
            (&self.account, Type::TEXT),
            (&message.room_id, Type::TEXT),
            (&message.event_id, Type::TEXT),
            (&message.label, Type::TEXT),
            (&sealed, Type::BYTEA),
        ];
        let connection = self.connection().await?;
        connection.execute_typed(insert, &values).await?;
        let values: [Value<'_>; 3] =
            [(&self.account, Type::TEXT), (&message.room_id, Type::TEXT), (&limit, Type::INT8)];
        connection.execute_typed(delete, &values).await?;
        Ok(())
    }

    /// Messages in the order in which they were stored.
    pub async fn sealed_messages(
        &self,
        target: &Target,
        slice: &Slice,
    ) -> Result<Vec<SealedMessage>, BridgeError> {
        let (column, value) = match target {
            Target::Label(label) => ("label", label),
            Target::Room(room) => ("room_id", room),
        };
        let order = if slice.after.is_some() { "ASC" } else { "DESC" };
        let sql = format!(
            "SELECT id, event_id, room_id, sealed FROM webhook_bridge.api_messages
             WHERE account = $1 AND {column} = $2 AND id > $3 AND id < $4
               AND stored_at > now() - make_interval(secs => $5)
             ORDER BY id {order} LIMIT $6"
        );
        let (after, before) = (slice.after.unwrap_or(0), slice.before.unwrap_or(i64::MAX));
        let max_age = slice.max_age.as_secs_f64();
        let values: [Value<'_>; 6] = [
            (&self.account, Type::TEXT),
            (value, Type::TEXT),
            (&after, Type::INT8),
            (&before, Type::INT8),
            (&max_age, Type::FLOAT8),
            (&slice.limit, Type::INT8),
        ];
        let rows = self.connection().await?.query_typed(&sql, &values).await?;
        let message = |row: &Row| SealedMessage {
            id: row.get(0),
            event_id: row.get(1),
            room_id: row.get(2),
            sealed: row.get(3),
        };
        let mut messages: Vec<_> = rows.iter().map(message).collect();
        messages.sort_by_key(|message| message.id);
        Ok(messages)
    }

    /// Delete messages older than this; all, if the API is off.
    pub async fn prune_sealed(&self, max_age: Option<Duration>) -> Result<u64, BridgeError> {
        let sql = "
            DELETE FROM webhook_bridge.api_messages
            WHERE account = $1 AND stored_at <= now() - make_interval(secs => $2)";
        let max_age = max_age.unwrap_or_default().as_secs_f64();
        let values: [Value<'_>; 2] = [(&self.account, Type::TEXT), (&max_age, Type::FLOAT8)];
        Ok(self.connection().await?.execute_typed(sql, &values).await?)
    }
}
