//! The sessions whose keys waiting events need.

use matrix_sdk_postgres::deadpool_postgres::tokio_postgres::{Row, types::Type};

use super::{Inbox, Value};
use crate::errors::BridgeError;

/// A Megolm session whose key is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingSession {
    pub room_id: String,
    pub session_id: String,
    /// Of its newest waiting event.
    pub position: i64,
}

/// Sessions that are listed at a time.
pub const SESSIONS: usize = 1000;

impl Inbox {
    /// Sessions of the waiting events, those of the newest events first: the first [`SESSIONS`] of those
    /// that follow `last`.
    pub async fn waiting_sessions(
        &self,
        last: Option<&WaitingSession>,
    ) -> Result<Vec<WaitingSession>, BridgeError> {
        let sql = "
            SELECT room_id, session_id, max(position) FROM webhook_bridge.events
            WHERE account = $1 AND state = 'waiting' AND session_id IS NOT NULL
            GROUP BY room_id, session_id
            HAVING $2::bigint IS NULL OR (max(position), room_id, session_id) < ($2, $3, $4)
            ORDER BY max(position) DESC, room_id DESC, session_id DESC LIMIT $5";
        let position = last.map(|last| last.position);
        let (room, session) = last.map(|last| (&last.room_id, &last.session_id)).unzip();
        let values: [Value<'_>; 5] = [
            (&self.account, Type::TEXT),
            (&position, Type::INT8),
            (&room, Type::TEXT),
            (&session, Type::TEXT),
            (&(SESSIONS as i64), Type::INT8),
        ];
        let rows = self.connection().await?.query_typed(sql, &values).await?;
        let session = |row: &Row| WaitingSession {
            room_id: row.get(0),
            session_id: row.get(1),
            position: row.get(2),
        };
        Ok(rows.iter().map(session).collect())
    }

    /// An event that waits for the key of a session, as received.
    pub async fn waiting_event(
        &self,
        session: &WaitingSession,
    ) -> Result<Option<Vec<u8>>, BridgeError> {
        let sql = "
            SELECT event FROM webhook_bridge.events
            WHERE account = $1 AND room_id = $2 AND session_id = $3 AND state = 'waiting'
              AND event IS NOT NULL LIMIT 1";
        let row = self.connection().await?;
        let row = row.query_typed_opt(sql, &self.of_session(session)).await?;
        Ok(row.map(|row| row.get(0)))
    }

    fn of_session<'a>(&'a self, session: &'a WaitingSession) -> [Value<'a>; 3] {
        [
            (&self.account, Type::TEXT),
            (&session.room_id, Type::TEXT),
            (&session.session_id, Type::TEXT),
        ]
    }

    /// The key of a session has come: its events are decrypted again.
    pub async fn release_session(&self, session: &WaitingSession) -> Result<(), BridgeError> {
        let sql = "
            UPDATE webhook_bridge.events SET state = 'pending'
            WHERE account = $1 AND room_id = $2 AND session_id = $3 AND state = 'waiting'";
        self.connection().await?.execute_typed(sql, &self.of_session(session)).await?;
        Ok(())
    }
}
