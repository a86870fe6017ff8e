//! One sync, one transaction: its events, its gaps, and the position after it.

use matrix_sdk_postgres::deadpool_postgres::{Transaction, tokio_postgres::types::Type};

use super::{Inbox, Received, forget_redacted, insert_events};
use crate::errors::BridgeError;

/// A gap before the events of a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewGap {
    pub from_token: String,
    pub to_token: Option<String>,
    pub stop_event_id: Option<String>,
}

/// What a sync said about a room we are in, or were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomChange {
    pub room_id: String,
    pub left: bool,
    pub encrypted: bool,
    /// Membership changes may have been missed.
    pub members_missed: bool,
    pub gap: Option<NewGap>,
    pub events: Vec<Received>,
    pub last_event_id: Option<String>,
    /// Events of this room that were redacted.
    pub redacted: Vec<String>,
}

/// All that one sync changes.
#[derive(Debug, Default)]
pub struct SyncRecord {
    pub next_batch: String,
    pub rooms: Vec<RoomChange>,
    pub invitations: Vec<String>,
    /// Invitations that were withdrawn or declined elsewhere.
    pub invitations_gone: Vec<String>,
    /// Megolm sessions whose keys came with this sync.
    pub new_sessions: Vec<String>,
}

impl Inbox {
    /// Where the next sync begins; `None` before the first.
    pub async fn sync_position(&self) -> Result<Option<String>, BridgeError> {
        let sql = "SELECT next_batch FROM webhook_bridge.sync_positions WHERE account = $1";
        let row = self.connection().await?;
        let row = row.query_typed_opt(sql, &[(&self.account, Type::TEXT)]).await?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Commit a sync. Returns how many events were new to us.
    pub async fn record(&self, sync: &SyncRecord) -> Result<u64, BridgeError> {
        let mut connection = self.connection().await?;
        let transaction = connection.transaction().await?;
        let mut position = self.next_position(&transaction).await?;
        let mut received = 0;
        for room in &sync.rooms {
            self.record_room(&transaction, room).await?;
            if let Some(gap) = &room.gap {
                self.record_gap(&transaction, &room.room_id, gap, position).await?;
                position += 1;
            }
            let placed: Vec<_> =
                room.events.iter().cloned().zip(position..).map(|(e, p)| (e, p, 0)).collect();
            position += placed.len() as i64;
            received += insert_events(&transaction, &self.account, &room.room_id, &placed).await?;
            forget_redacted(&transaction, &self.account, &room.room_id, &room.redacted).await?;
        }
        self.record_invitations(&transaction, sync).await?;
        self.wake_waiting(&transaction, &sync.new_sessions).await?;
        let advance = "
            INSERT INTO webhook_bridge.sync_positions (account, next_batch, next_position)
            VALUES ($1, $2, $3)
            ON CONFLICT (account) DO UPDATE SET next_batch = excluded.next_batch,
                next_position = excluded.next_position, synced_at = now()";
        let values = [
            (&self.account as _, Type::TEXT),
            (&sync.next_batch as _, Type::TEXT),
            (&position as _, Type::INT8),
        ];
        transaction.execute_typed(advance, &values).await?;
        transaction.commit().await?;
        Ok(received)
    }

    async fn next_position(&self, transaction: &Transaction<'_>) -> Result<i64, BridgeError> {
        let sql = "SELECT next_position FROM webhook_bridge.sync_positions WHERE account = $1";
        let row = transaction.query_typed_opt(sql, &[(&self.account, Type::TEXT)]).await?;
        Ok(row.map_or(1, |row| row.get(0)))
    }

    async fn record_room(
        &self,
        transaction: &Transaction<'_>,
        room: &RoomChange,
    ) -> Result<(), BridgeError> {
        let sql = "
            INSERT INTO webhook_bridge.rooms AS known
                (account, room_id, membership, encrypted, members_known, last_event_id)
            VALUES ($1, $2, $3, $4, false, $6)
            ON CONFLICT (account, room_id) DO UPDATE SET
                membership = excluded.membership,
                encrypted = known.encrypted OR excluded.encrypted,
                members_known = known.members_known AND NOT $5,
                last_event_id = coalesce(excluded.last_event_id, known.last_event_id)";
        let membership = if room.left { "left" } else { "joined" };
        let values = [
            (&self.account as _, Type::TEXT),
            (&room.room_id as _, Type::TEXT),
            (&membership as _, Type::TEXT),
            (&room.encrypted as _, Type::BOOL),
            (&room.members_missed as _, Type::BOOL),
            (&room.last_event_id as _, Type::TEXT),
        ];
        transaction.execute_typed(sql, &values).await?;
        Ok(())
    }

    async fn record_gap(
        &self,
        transaction: &Transaction<'_>,
        room_id: &str,
        gap: &NewGap,
        position: i64,
    ) -> Result<(), BridgeError> {
        let sql = "
            INSERT INTO webhook_bridge.gaps
                (account, room_id, position, from_token, to_token, stop_event_id)
            VALUES ($1, $2, $3, $4, $5, $6)";
        let values = [
            (&self.account as _, Type::TEXT),
            (&room_id as _, Type::TEXT),
            (&position as _, Type::INT8),
            (&gap.from_token as _, Type::TEXT),
            (&gap.to_token as _, Type::TEXT),
            (&gap.stop_event_id as _, Type::TEXT),
        ];
        transaction.execute_typed(sql, &values).await?;
        Ok(())
    }

    async fn record_invitations(
        &self,
        transaction: &Transaction<'_>,
        sync: &SyncRecord,
    ) -> Result<(), BridgeError> {
        let invited = "
            INSERT INTO webhook_bridge.rooms (account, room_id, membership)
            SELECT $1, room_id, 'invited' FROM UNNEST($2) AS room_id
            ON CONFLICT (account, room_id) DO UPDATE SET membership = 'invited'";
        let gone = "
            DELETE FROM webhook_bridge.rooms
            WHERE account = $1 AND room_id = ANY($2) AND membership = 'invited'";
        for (sql, rooms) in [(invited, &sync.invitations), (gone, &sync.invitations_gone)] {
            if !rooms.is_empty() {
                let values = [(&self.account as _, Type::TEXT), (rooms as _, Type::TEXT_ARRAY)];
                transaction.execute_typed(sql, &values).await?;
            }
        }
        Ok(())
    }

    async fn wake_waiting(
        &self,
        transaction: &Transaction<'_>,
        sessions: &[String],
    ) -> Result<(), BridgeError> {
        if sessions.is_empty() {
            return Ok(());
        }
        let sql = "
            UPDATE webhook_bridge.events SET state = 'pending'
            WHERE account = $1 AND state = 'waiting' AND session_id = ANY($2)";
        let values = [(&self.account as _, Type::TEXT), (&sessions as _, Type::TEXT_ARRAY)];
        transaction.execute_typed(sql, &values).await?;
        Ok(())
    }
}
