//! Invitations, and rooms that replace upgraded ones: both are joined.

use std::time::Duration;

use matrix_sdk_postgres::deadpool_postgres::tokio_postgres::types::Type;

use super::{Inbox, SyncRecord, Transaction, Value, run_for_pairs};
use crate::{errors::BridgeError, membership::Upgrade, responses::Invitation};

/// A room to join.
pub struct Pending {
    pub age: Duration,
    pub inviter: Option<String>,
    /// It replaces a room that this user upgraded.
    pub upgraded_by: Option<String>,
}

impl Inbox {
    /// A room to join; `None` if the invitation was withdrawn.
    pub async fn pending(&self, room_id: &str) -> Result<Option<Pending>, BridgeError> {
        let sql = "
            SELECT extract(epoch FROM now() - invited_at)::float8, inviter, upgraded_by
            FROM webhook_bridge.rooms
            WHERE account = $1 AND room_id = $2 AND membership = 'invited'";
        let values: [Value<'_>; 2] = [(&self.account, Type::TEXT), (&room_id, Type::TEXT)];
        let row = self.connection().await?.query_typed_opt(sql, &values).await?;
        Ok(row.map(|row| Pending {
            age: Duration::try_from_secs_f64(row.get(0)).unwrap_or_default(),
            inviter: row.get(1),
            upgraded_by: row.get(2),
        }))
    }

    /// Record who invited the bot, `me`, and the replacements of upgraded rooms.
    pub(super) async fn record_inviters(
        &self,
        transaction: &impl Transaction,
        sync: &SyncRecord,
    ) -> Result<(), BridgeError> {
        let inviters = "
            UPDATE webhook_bridge.rooms SET inviter = new.inviter
            FROM UNNEST($2, $3) AS new (room, inviter)
            WHERE account = $1 AND room_id = new.room AND membership = 'invited'";
        // A room that the bot left is not joined again.
        let upgrades = "
            INSERT INTO webhook_bridge.rooms AS known (account, room_id, membership, upgraded_by)
            SELECT DISTINCT ON (room) $1, room, 'invited', by FROM UNNEST($2, $3) AS new (room, by)
            ON CONFLICT (account, room_id) DO UPDATE SET upgraded_by = excluded.upgraded_by
                WHERE known.membership = 'invited'";
        let by_room =
            |invitation: &Invitation| (invitation.room_id.clone(), invitation.inviter.clone());
        let replaced = |new: &Upgrade| (new.replacement.clone(), new.by.clone());
        run_for_pairs(transaction, inviters, &self.account, sync.inviters.iter().map(by_room))
            .await?;
        run_for_pairs(transaction, upgrades, &self.account, sync.upgrades.iter().map(replaced))
            .await
    }

    /// Note at waiting events why their keys do not come.
    pub(super) async fn record_withheld(
        &self,
        transaction: &impl Transaction,
        sync: &SyncRecord,
    ) -> Result<(), BridgeError> {
        let sql = "
            UPDATE webhook_bridge.events SET failure = new.failure
            FROM UNNEST($2, $3) AS new (session, failure)
            WHERE account = $1 AND state = 'waiting' AND session_id = new.session";
        let of_session = |notice: &crate::withheld::Withheld| {
            Some((notice.session_id.clone()?, crate::withheld::explain(notice.code)))
        };
        run_for_pairs(transaction, sql, &self.account, sync.withheld.iter().filter_map(of_session))
            .await
    }

    /// Note why the key of an event does not come.
    pub async fn note_withheld(
        &self,
        room_id: &str,
        event_id: &str,
        failure: &str,
    ) -> Result<(), BridgeError> {
        let sql = "
            UPDATE webhook_bridge.events SET failure = $4
            WHERE account = $1 AND room_id = $2 AND event_id = $3";
        self.change_event(sql, room_id, event_id, &[(&failure, Type::TEXT)]).await
    }
}
