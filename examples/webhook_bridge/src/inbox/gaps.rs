//! Gaps in rooms' histories, filled page by page.

use std::collections::HashSet;

use matrix_sdk_postgres::deadpool_postgres::tokio_postgres::{Row, types::Type};

use super::{
    Inbox, Placed, Received, Transaction, Value, cancel_redacted, insert_events, migrate::begin,
};
use crate::errors::BridgeError;

/// A gap that is being filled, newest event first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub room_id: String,
    pub position: i64,
    /// Empty: the next page starts at the room's newest event.
    pub from_token: String,
    pub to_token: Option<String>,
    pub stop_event_id: Option<String>,
    /// Paging started at the newest event and has not reached the events after the gap yet.
    pub from_newest: bool,
    pub filled: i64,
    pub pages: Pages,
}

/// Number of pages fetched for a gap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    pub all: i32,
    pub empty: i32,
}

pub(super) const FIRST_AFTER: &str = "
    SELECT event_id FROM webhook_bridge.events
    WHERE account = $1 AND room_id = $2 AND position > $3
    ORDER BY position, place LIMIT 1";

impl Inbox {
    /// Rooms with a gap, the one with the oldest gap first.
    pub async fn rooms_with_gaps(&self) -> Result<Vec<String>, BridgeError> {
        let sql = "
            SELECT room_id FROM webhook_bridge.gaps
            WHERE account = $1 GROUP BY room_id ORDER BY min(position)";
        let connection = self.connection().await?;
        let rows = connection.query_typed(sql, &[(&self.account, Type::TEXT)]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// A room's oldest gap, which blocks the room's later events.
    pub async fn oldest_gap(&self, room_id: &str) -> Result<Option<Gap>, BridgeError> {
        let sql = "
            SELECT room_id, position, from_token, to_token, stop_event_id, filled, pages,
                   empty_pages, from_newest
            FROM webhook_bridge.gaps WHERE account = $1 AND room_id = $2
            ORDER BY position LIMIT 1";
        let values: [Value<'_>; 2] = [(&self.account, Type::TEXT), (&room_id, Type::TEXT)];
        let row = self.connection().await?.query_typed_opt(sql, &values).await?;
        let gap = |row: Row| Gap {
            room_id: row.get(0),
            position: row.get(1),
            from_token: row.get(2),
            to_token: row.get(3),
            stop_event_id: row.get(4),
            from_newest: row.get(8),
            filled: row.get(5),
            pages: Pages { all: row.get(6), empty: row.get(7) },
        };
        Ok(row.map(gap))
    }

    /// Which of these events were stored before the gap arose.
    pub async fn known_before(
        &self,
        gap: &Gap,
        event_ids: &[String],
    ) -> Result<HashSet<String>, BridgeError> {
        let sql = "
            SELECT event_id FROM webhook_bridge.events
            WHERE account = $1 AND room_id = $2 AND event_id = ANY($3) AND position < $4";
        let values: [Value<'_>; 4] = [
            (&self.account, Type::TEXT),
            (&gap.room_id, Type::TEXT),
            (&event_ids, Type::TEXT_ARRAY),
            (&gap.position, Type::INT8),
        ];
        let rows = self.connection().await?.query_typed(sql, &values).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// The first event after the gap, if any.
    pub async fn first_after(&self, gap: &Gap) -> Result<Option<String>, BridgeError> {
        let values: [Value<'_>; 3] =
            [(&self.account, Type::TEXT), (&gap.room_id, Type::TEXT), (&gap.position, Type::INT8)];
        let row = self.connection().await?.query_typed_opt(FIRST_AFTER, &values).await?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Store a page, newest event first, and the token of the next page (`None` closes the gap), in one
    /// transaction. Returns the number of new events, and advances `gap`.
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
        let transaction = begin(&mut connection).await?;
        let received = insert_events(&transaction, &self.account, &placed).await?;
        cancel_redacted(&transaction, &self.account, &redacted).await?;
        let [account, room, position]: [Value<'_>; 3] =
            [(&self.account, Type::TEXT), (&gap.room_id, Type::TEXT), (&gap.position, Type::INT8)];
        if let Some(next) = &next {
            let sql = "
                UPDATE webhook_bridge.gaps
                SET from_token = $4, filled = $5, pages = $6, empty_pages = $7, from_newest = $8
                WHERE account = $1 AND room_id = $2 AND position = $3";
            let values = [
                account,
                room,
                position,
                (next as _, Type::TEXT),
                (&filled as _, Type::INT8),
                (&gap.pages.all as _, Type::INT4),
                (&gap.pages.empty as _, Type::INT4),
                (&gap.from_newest as _, Type::BOOL),
            ];
            transaction.run(sql, &values).await?;
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
