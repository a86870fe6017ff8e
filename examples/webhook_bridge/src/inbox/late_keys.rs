//! The sessions whose keys waiting events need.

use matrix_sdk_postgres::deadpool_postgres::tokio_postgres::{Row, types::Type};

use super::{Inbox, Value};
use crate::errors::BridgeError;

/// A Megolm session whose key is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingSession {
    pub room_id: String,
    pub session_id: String,
}

impl Inbox {
    /// The sessions of the waiting events, those of the newest events first.
    pub async fn waiting_sessions(&self) -> Result<Vec<WaitingSession>, BridgeError> {
        let sql = "
            SELECT room_id, session_id FROM webhook_bridge.events
            WHERE account = $1 AND state = 'waiting' AND session_id IS NOT NULL
            GROUP BY room_id, session_id ORDER BY max(position) DESC LIMIT 1000";
        let connection = self.connection().await?;
        let rows = connection.query_typed(sql, &[(&self.account, Type::TEXT)]).await?;
        let session = |row: &Row| WaitingSession { room_id: row.get(0), session_id: row.get(1) };
        Ok(rows.iter().map(session).collect())
    }

    /// The key of a session has come: its events are decrypted again.
    pub async fn release_session(&self, session: &WaitingSession) -> Result<(), BridgeError> {
        let sql = "
            UPDATE webhook_bridge.events SET state = 'pending'
            WHERE account = $1 AND room_id = $2 AND session_id = $3 AND state = 'waiting'";
        let values: [Value<'_>; 3] = [
            (&self.account, Type::TEXT),
            (&session.room_id, Type::TEXT),
            (&session.session_id, Type::TEXT),
        ];
        self.connection().await?.execute_typed(sql, &values).await?;
        Ok(())
    }
}
