//! Records a sync in the transaction of its keys: events, gaps, and the next position.

use std::collections::HashMap;

use matrix_sdk_postgres::deadpool_postgres::tokio_postgres::types::Type;
use ruma::OwnedUserId;

use super::{Inbox, Origin, Placed, Received, Transaction, Value, cancel_redacted, insert_events};
use crate::{errors::BridgeError, membership::Upgrade, responses::Invitation, withheld::Withheld};

/// A gap before the events of a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewGap {
    pub from_token: String,
    pub to_token: Option<String>,
    pub stop_event_id: Option<String>,
}

/// The changes of a joined or left room in a sync.
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
    /// Number of events without a valid id, sender or session id.
    pub malformed: usize,
    /// Events of this room that were redacted.
    pub redacted: Vec<String>,
    /// Senders and joined members that the sync tells of.
    pub people: Vec<OwnedUserId>,
}

/// The changes of one sync.
#[derive(Debug, Default)]
pub struct SyncRecord {
    pub next_batch: String,
    /// The homeserver no longer knows the previous position, nor the tokens of gaps.
    pub lost: bool,
    pub rooms: Vec<RoomChange>,
    pub invitations: Vec<String>,
    /// Invitations that were withdrawn or declined elsewhere.
    pub invitations_gone: Vec<String>,
    /// Megolm sessions whose keys came with this sync.
    pub new_sessions: Vec<String>,
    /// What rooms' labels follow from, by room.
    pub origins: HashMap<String, Origin>,
    /// Who invited the bot.
    pub inviters: Vec<Invitation>,
    pub upgrades: Vec<Upgrade>,
    pub withheld: Vec<Withheld>,
}

impl Inbox {
    /// The position of the next sync; `None` before the first.
    pub async fn sync_position(&self) -> Result<Option<String>, BridgeError> {
        let sql = "SELECT next_batch FROM webhook_bridge.sync_positions WHERE account = $1";
        let row = self.connection().await?;
        let row = row.query_typed_opt(sql, &[(&self.account, Type::TEXT)]).await?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Record a sync within the transaction that saves its keys. Returns the number of new events. The
    /// number of statements does not depend on the number of rooms, to keep the transaction short.
    pub async fn record(
        &self,
        transaction: &impl Transaction,
        sync: &SyncRecord,
    ) -> Result<u64, BridgeError> {
        let mut position = self.next_position(transaction).await?;
        let (mut gaps, mut placed, mut redacted) = (Vec::new(), Vec::new(), Vec::new());
        for room in &sync.rooms {
            let room_id = room.room_id.as_str();
            if let Some(gap) = &room.gap {
                gaps.push((room_id, gap, position));
                position += 1;
            }
            for event in &room.events {
                placed.push(Placed { room_id, event, position, place: 0 });
                position += 1;
            }
            redacted.extend(room.redacted.iter().map(|event| (room_id, event.as_str())));
        }
        self.record_rooms(transaction, &sync.rooms).await?;
        if sync.lost {
            self.restart_gaps(transaction).await?;
        }
        self.record_gaps(transaction, &gaps).await?;
        let received = insert_events(transaction, &self.account, &placed).await?;
        cancel_redacted(transaction, &self.account, &redacted).await?;
        self.record_invitations(transaction, sync).await?;
        self.record_origins(transaction, &sync.origins).await?;
        self.inherit_inviters(transaction, &sync.upgrades).await?;
        self.release_waiting(transaction, &sync.new_sessions).await?;
        self.record_inviters(transaction, sync).await?;
        self.record_withheld(transaction, sync).await?;
        let advance = "
            INSERT INTO webhook_bridge.sync_positions (account, next_batch, next_position)
            VALUES ($1, $2, $3)
            ON CONFLICT (account) DO UPDATE SET next_batch = excluded.next_batch,
                next_position = excluded.next_position, synced_at = now()";
        let values: [Value<'_>; 3] =
            [(&self.account, Type::TEXT), (&sync.next_batch, Type::TEXT), (&position, Type::INT8)];
        transaction.run(advance, &values).await?;
        Ok(received)
    }

    async fn next_position(&self, transaction: &impl Transaction) -> Result<i64, BridgeError> {
        let sql = "SELECT next_position FROM webhook_bridge.sync_positions WHERE account = $1";
        let rows = transaction.run(sql, &[(&self.account, Type::TEXT)]).await?;
        Ok(rows.first().map_or(1, |row| row.get(0)))
    }

    async fn record_rooms(
        &self,
        transaction: &impl Transaction,
        rooms: &[RoomChange],
    ) -> Result<(), BridgeError> {
        if rooms.is_empty() {
            return Ok(());
        }
        let sql = "
            INSERT INTO webhook_bridge.rooms AS known
                (account, room_id, membership, encrypted, last_event_id)
            SELECT $1, * FROM UNNEST($2, $3, $4, $5)
            ON CONFLICT (account, room_id) DO UPDATE SET
                membership = excluded.membership,
                encrypted = known.encrypted OR excluded.encrypted,
                members_known = known.members_known AND known.room_id <> ALL ($6)
                    AND (known.encrypted OR NOT excluded.encrypted),
                last_event_id = coalesce(excluded.last_event_id, known.last_event_id)";
        let membership = |room: &RoomChange| if room.left { "left" } else { "joined" };
        let room_ids: Vec<_> = rooms.iter().map(|room| &room.room_id).collect();
        let memberships: Vec<_> = rooms.iter().map(membership).collect();
        let encrypted: Vec<_> = rooms.iter().map(|room| room.encrypted).collect();
        let last_events: Vec<_> = rooms.iter().map(|room| &room.last_event_id).collect();
        let missed: Vec<_> =
            rooms.iter().filter(|room| room.members_missed).map(|room| &room.room_id).collect();
        let values: [Value<'_>; 6] = [
            (&self.account, Type::TEXT),
            (&room_ids, Type::TEXT_ARRAY),
            (&memberships, Type::TEXT_ARRAY),
            (&encrypted, Type::BOOL_ARRAY),
            (&last_events, Type::TEXT_ARRAY),
            (&missed, Type::TEXT_ARRAY),
        ];
        transaction.run(sql, &values).await?;
        Ok(())
    }

    /// `gaps`: room, gap, position.
    async fn record_gaps(
        &self,
        transaction: &impl Transaction,
        gaps: &[(&str, &NewGap, i64)],
    ) -> Result<(), BridgeError> {
        if gaps.is_empty() {
            return Ok(());
        }
        let sql = "
            INSERT INTO webhook_bridge.gaps
                (account, room_id, position, from_token, to_token, stop_event_id, from_newest)
            SELECT $1, *, from_token = ''
            FROM UNNEST($2, $3, $4, $5, $6)
                AS new (room_id, position, from_token, to_token, stop_event_id)";
        let room_ids: Vec<_> = gaps.iter().map(|(room_id, ..)| *room_id).collect();
        let positions: Vec<_> = gaps.iter().map(|(.., position)| *position).collect();
        let from_tokens: Vec<_> = gaps.iter().map(|(_, gap, _)| &gap.from_token).collect();
        let to_tokens: Vec<_> = gaps.iter().map(|(_, gap, _)| &gap.to_token).collect();
        let stops: Vec<_> = gaps.iter().map(|(_, gap, _)| &gap.stop_event_id).collect();
        let values: [Value<'_>; 6] = [
            (&self.account, Type::TEXT),
            (&room_ids, Type::TEXT_ARRAY),
            (&positions, Type::INT8_ARRAY),
            (&from_tokens, Type::TEXT_ARRAY),
            (&to_tokens, Type::TEXT_ARRAY),
            (&stops, Type::TEXT_ARRAY),
        ];
        transaction.run(sql, &values).await?;
        Ok(())
    }

    /// Restart all open gaps at the newest event.
    async fn restart_gaps(&self, transaction: &impl Transaction) -> Result<(), BridgeError> {
        let sql = "
            UPDATE webhook_bridge.gaps
            SET from_token = '', to_token = NULL, from_newest = true, pages = 0, empty_pages = 0
            WHERE account = $1";
        transaction.run(sql, &[(&self.account, Type::TEXT)]).await?;
        Ok(())
    }

    async fn record_invitations(
        &self,
        transaction: &impl Transaction,
        sync: &SyncRecord,
    ) -> Result<(), BridgeError> {
        let invited = "
            INSERT INTO webhook_bridge.rooms AS known (account, room_id, membership)
            SELECT $1, room_id, 'invited' FROM UNNEST($2) AS room_id
            ON CONFLICT (account, room_id) DO UPDATE SET
                membership = 'invited', invited_at = now(), inviter = NULL,
                upgraded_by = CASE WHEN known.membership = 'invited' THEN known.upgraded_by END";
        let gone = "
            DELETE FROM webhook_bridge.rooms
            WHERE account = $1 AND room_id = ANY($2) AND membership = 'invited'";
        for (sql, rooms) in [(invited, &sync.invitations), (gone, &sync.invitations_gone)] {
            if !rooms.is_empty() {
                let values: [Value<'_>; 2] =
                    [(&self.account, Type::TEXT), (rooms, Type::TEXT_ARRAY)];
                transaction.run(sql, &values).await?;
            }
        }
        Ok(())
    }

    async fn release_waiting(
        &self,
        transaction: &impl Transaction,
        sessions: &[String],
    ) -> Result<(), BridgeError> {
        if sessions.is_empty() {
            return Ok(());
        }
        let sql = "
            UPDATE webhook_bridge.events SET state = 'pending'
            WHERE account = $1 AND state = 'waiting' AND session_id = ANY($2)";
        let values: [Value<'_>; 2] = [(&self.account, Type::TEXT), (&sessions, Type::TEXT_ARRAY)];
        transaction.run(sql, &values).await?;
        Ok(())
    }
}
