//! Replay detection: which event used each message index of a session.

use matrix_sdk_postgres::deadpool_postgres::tokio_postgres::types::Type;

use super::{Inbox, Value};
use crate::errors::BridgeError;

/// A message index of a Megolm session; a sender uses each index once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageIndex {
    pub session_id: String,
    pub index: u32,
}

impl Inbox {
    /// Record that an event used this index. Returns the first event that did.
    pub async fn record_message_index(
        &self,
        at: &MessageIndex,
        room_id: &str,
        event_id: &str,
    ) -> Result<String, BridgeError> {
        let note = "
            INSERT INTO webhook_bridge.message_indices
                (account, session_id, message_index, room_id, event_id)
            VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
        let first = "
            SELECT event_id FROM webhook_bridge.message_indices
            WHERE account = $1 AND session_id = $2 AND message_index = $3 AND room_id = $4";
        let index = i64::from(at.index);
        let values: [Value<'_>; 5] = [
            (&self.account, Type::TEXT),
            (&at.session_id, Type::TEXT),
            (&index, Type::INT8),
            (&room_id, Type::TEXT),
            (&event_id, Type::TEXT),
        ];
        let connection = self.connection().await?;
        if connection.execute_typed(note, &values).await? == 1 {
            return Ok(event_id.to_owned());
        }
        Ok(connection.query_typed_one(first, &values[..4]).await?.get(0))
    }
}
