//! The state of rooms: memberships, invitations, and whether the member list is known.

use std::collections::{HashMap, HashSet};

use matrix_sdk_postgres::deadpool_postgres::tokio_postgres::{Row, types::Type};

use super::Inbox;
use crate::errors::BridgeError;

/// The state of a room before a sync.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownRoom {
    pub joined: bool,
    pub encrypted: bool,
    pub last_event_id: Option<String>,
    /// Events of the timeline that are stored already; filled only after a lost position.
    pub seen: HashSet<String>,
}

impl Inbox {
    pub async fn known_rooms(
        &self,
        room_ids: &[String],
    ) -> Result<HashMap<String, KnownRoom>, BridgeError> {
        let sql = "
            SELECT room_id, membership = 'joined', encrypted, last_event_id
            FROM webhook_bridge.rooms WHERE account = $1 AND room_id = ANY($2)";
        let values = [(&self.account as _, Type::TEXT), (&room_ids as _, Type::TEXT_ARRAY)];
        let rows = self.connection().await?.query_typed(sql, &values).await?;
        let known = |row: &Row| KnownRoom {
            joined: row.get(1),
            encrypted: row.get(2),
            last_event_id: row.get(3),
            seen: HashSet::new(),
        };
        Ok(rows.iter().map(|row| (row.get(0), known(row))).collect())
    }

    /// Add to `known` which of these events (room, event id) are stored already.
    pub async fn mark_seen(
        &self,
        known: &mut HashMap<String, KnownRoom>,
        events: &[(&str, String)],
    ) -> Result<(), BridgeError> {
        let sql = "
            SELECT room_id, event_id FROM webhook_bridge.events
            JOIN UNNEST($2, $3) AS told (room, event) ON room_id = room AND event_id = told.event
            WHERE account = $1";
        let (rooms, ids): (Vec<&str>, Vec<&String>) =
            events.iter().map(|(room, id)| (*room, id)).unzip();
        let values = [
            (&self.account as _, Type::TEXT),
            (&rooms as _, Type::TEXT_ARRAY),
            (&ids as _, Type::TEXT_ARRAY),
        ];
        for row in self.connection().await?.query_typed(sql, &values).await? {
            if let Some(room) = known.get_mut(row.get::<_, &str>(0)) {
                room.seen.insert(row.get(1));
            }
        }
        Ok(())
    }

    pub async fn invitations(&self) -> Result<Vec<String>, BridgeError> {
        self.room_ids("membership = 'invited'").await
    }

    /// Rooms whose member list is missing or outdated: encrypted ones, or `all`.
    pub async fn rooms_without_members(&self, all: bool) -> Result<Vec<String>, BridgeError> {
        self.room_ids(if all {
            "membership = 'joined' AND NOT members_known"
        } else {
            "membership = 'joined' AND encrypted AND NOT members_known"
        })
        .await
    }

    async fn room_ids(&self, condition: &'static str) -> Result<Vec<String>, BridgeError> {
        let sql = format!(
            "SELECT room_id FROM webhook_bridge.rooms
             WHERE account = $1 AND {condition} ORDER BY room_id"
        );
        let connection = self.connection().await?;
        let rows = connection.query_typed(&sql, &[(&self.account, Type::TEXT)]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Delete an accepted or abandoned invitation, unless a sync has already changed the membership.
    pub async fn forget_invitation(&self, room_id: &str) -> Result<(), BridgeError> {
        let sql = "
            DELETE FROM webhook_bridge.rooms
            WHERE account = $1 AND room_id = $2 AND membership = 'invited'";
        self.change_room(sql, room_id).await
    }

    pub async fn members_known(&self, room_id: &str) -> Result<(), BridgeError> {
        let sql = "
            UPDATE webhook_bridge.rooms SET members_known = true
            WHERE account = $1 AND room_id = $2";
        self.change_room(sql, room_id).await
    }

    async fn change_room(&self, sql: &str, room_id: &str) -> Result<(), BridgeError> {
        let values = [(&self.account as _, Type::TEXT), (&room_id as _, Type::TEXT)];
        self.connection().await?.execute_typed(sql, &values).await?;
        Ok(())
    }
}
