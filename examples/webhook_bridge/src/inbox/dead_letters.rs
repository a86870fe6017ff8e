//! Dead letters, for an operator: listed, and sent again.

use std::time::SystemTime;

use matrix_sdk_postgres::deadpool_postgres::tokio_postgres::{Row, types::Type};

use super::{Inbox, Value};
use crate::errors::BridgeError;

/// An event that was not delivered, and why.
#[derive(Debug)]
pub struct DeadLetter {
    pub event_id: String,
    pub room_id: String,
    /// When it became a dead letter, as `2026-01-01T00:00:00Z`.
    pub failed_at: String,
    pub reason: String,
    /// Whether the webhook rejected it: then it is sent again at the next start, too.
    pub rejected: bool,
    /// The event as received, still encrypted if it was.
    pub json: Vec<u8>,
    pub place: Place,
}

/// Where a dead letter is in the list: its time, position and place.
pub type Place = (SystemTime, i64, i64);

/// Dead letters that are listed at a time; each has up to 64 kB.
const PAGE: i64 = 500;

impl Inbox {
    /// Dead letters, oldest first: the next page of those that follow `last`, or the first one.
    pub async fn dead_letters(
        &self,
        last: Option<&DeadLetter>,
    ) -> Result<Vec<DeadLetter>, BridgeError> {
        let sql = r#"
            SELECT event_id, room_id, coalesce(failure, ''), rejections > 0, coalesce(event, ''),
                   to_char(coalesce(done_at, received_at) AT TIME ZONE 'UTC',
                           'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
                   coalesce(done_at, received_at), position, place
            FROM webhook_bridge.events
            WHERE account = $1 AND state = 'failed'
              AND ($2::timestamptz IS NULL
                   OR (coalesce(done_at, received_at), position, place) > ($2, $3, $4))
            ORDER BY coalesce(done_at, received_at), position, place LIMIT $5"#;
        let last = last.map(|last| last.place);
        let values: [Value<'_>; 5] = [
            (&self.account, Type::TEXT),
            (&last.map(|(time, ..)| time), Type::TIMESTAMPTZ),
            (&last.map(|(_, position, _)| position), Type::INT8),
            (&last.map(|(.., place)| place), Type::INT8),
            (&PAGE, Type::INT8),
        ];
        let rows = self.connection().await?.query_typed(sql, &values).await?;
        let dead_letter = |row: &Row| DeadLetter {
            event_id: row.get(0),
            room_id: row.get(1),
            reason: row.get(2),
            rejected: row.get(3),
            json: row.get(4),
            failed_at: row.get(5),
            place: (row.get(6), row.get(7), row.get(8)),
        };
        Ok(rows.iter().map(dead_letter).collect())
    }

    /// Make dead letters pending again: those with these ids, or all. Returns their number.
    pub async fn resend(&self, event_ids: Option<&[String]>) -> Result<u64, BridgeError> {
        let sql = "
            UPDATE webhook_bridge.events
            SET state = 'pending', rejections = 0, retry_at = NULL, failure = NULL, done_at = NULL
            WHERE account = $1 AND state = 'failed' AND event IS NOT NULL
              AND ($2::text[] IS NULL OR event_id = ANY($2))";
        let values: [Value<'_>; 2] = [(&self.account, Type::TEXT), (&event_ids, Type::TEXT_ARRAY)];
        Ok(self.connection().await?.execute_typed(sql, &values).await?)
    }
}
