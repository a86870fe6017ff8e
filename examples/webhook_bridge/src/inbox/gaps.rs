//! Gaps in rooms' histories, filled page by page.

use matrix_sdk_postgres::deadpool_postgres::tokio_postgres::{Row, types::Type};

use super::{Inbox, Placed, Received, Transaction, Value, forget_redacted, insert_events};
use crate::errors::BridgeError;

/// A gap that is being filled, from new to old.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub room_id: String,
    pub position: i64,
    pub from_token: String,
    pub to_token: Option<String>,
    pub stop_event_id: Option<String>,
    pub filled: i64,
}

impl Inbox {
    /// All gaps, the oldest first: a room's events wait for its oldest gap.
    pub async fn gaps(&self) -> Result<Vec<Gap>, BridgeError> {
        let sql = "
            SELECT room_id, position, from_token, to_token, stop_event_id, filled
            FROM webhook_bridge.gaps WHERE account = $1 ORDER BY position";
        let connection = self.connection().await?;
        let rows = connection.query_typed(sql, &[(&self.account, Type::TEXT)]).await?;
        let gap = |row: &Row| Gap {
            room_id: row.get(0),
            position: row.get(1),
            from_token: row.get(2),
            to_token: row.get(3),
            stop_event_id: row.get(4),
            filled: row.get(5),
        };
        Ok(rows.iter().map(gap).collect())
    }

    /// Store a page, its newest event first, and where the next begins (`None`: the gap is closed),
    /// in one transaction. Returns how many events were new, and advances `gap`.
    pub async fn fill(
        &self,
        gap: &mut Gap,
        page: &[Received],
        redacted: &[String],
        next: Option<String>,
    ) -> Result<u64, BridgeError> {
        let filled = gap.filled + page.len() as i64;
        let place = |(event, number): (_, i64)| Placed {
            room_id: &gap.room_id,
            event,
            position: gap.position,
            place: -number,
        };
        let placed: Vec<_> = page.iter().zip(gap.filled + 1..).map(place).collect();
        let redacted: Vec<_> =
            redacted.iter().map(|event| (gap.room_id.as_str(), event.as_str())).collect();
        let mut connection = self.connection().await?;
        let transaction = connection.transaction().await?;
        let received = insert_events(&transaction, &self.account, &placed).await?;
        forget_redacted(&transaction, &self.account, &redacted).await?;
        let [account, room, position]: [Value<'_>; 3] =
            [(&self.account, Type::TEXT), (&gap.room_id, Type::TEXT), (&gap.position, Type::INT8)];
        if let Some(next) = &next {
            let sql = "
                UPDATE webhook_bridge.gaps SET from_token = $4, filled = $5
                WHERE account = $1 AND room_id = $2 AND position = $3";
            let (next, filled): (Value<'_>, Value<'_>) =
                ((next, Type::TEXT), (&filled, Type::INT8));
            transaction.run(sql, &[account, room, position, next, filled]).await?;
        } else {
            let sql = "
                DELETE FROM webhook_bridge.gaps
                WHERE account = $1 AND room_id = $2 AND position = $3";
            transaction.run(sql, &[account, room, position]).await?;
        }
        transaction.commit().await?;
        gap.filled = filled;
        if let Some(next) = next {
            gap.from_token = next;
        }
        Ok(received)
    }
}
