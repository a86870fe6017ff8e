//! What rooms' labels follow from: who invited the bot, and a ghost among the members.

use std::collections::HashMap;

use matrix_sdk_postgres::deadpool_postgres::tokio_postgres::types::Type;

use super::{Inbox, Transaction, Value};
use crate::{errors::BridgeError, membership::Upgrade};

/// Where a room comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Who invited the bot.
    pub inviter: Option<String>,
    /// A member that a rule for ghosts matched.
    pub ghost: Option<String>,
}

const RECORD: &str = "
    INSERT INTO webhook_bridge.room_origins AS known (account, room_id, inviter, ghost)
    SELECT $1, * FROM UNNEST($2, $3, $4)
    ON CONFLICT (account, room_id) DO UPDATE SET
        inviter = coalesce(excluded.inviter, known.inviter),
        ghost = coalesce(known.ghost, excluded.ghost)";

impl Inbox {
    /// A room's origin, and whether its members are known, so that no ghost is overlooked.
    pub async fn origin(&self, room_id: &str) -> Result<(Origin, bool), BridgeError> {
        let sql = "
            SELECT origins.inviter, origins.ghost, coalesce(rooms.members_known, false)
            FROM (SELECT $1 AS account, $2 AS room_id) AS wanted
            LEFT JOIN webhook_bridge.rooms AS rooms USING (account, room_id)
            LEFT JOIN webhook_bridge.room_origins AS origins USING (account, room_id)";
        let values: [Value<'_>; 2] = [(&self.account, Type::TEXT), (&room_id, Type::TEXT)];
        let row = self.connection().await?.query_typed_one(sql, &values).await?;
        Ok((Origin { inviter: row.get(0), ghost: row.get(1) }, row.get(2)))
    }

    /// Record within a sync's transaction.
    pub(super) async fn record_origins(
        &self,
        transaction: &impl Transaction,
        origins: &HashMap<String, Origin>,
    ) -> Result<(), BridgeError> {
        if origins.is_empty() {
            return Ok(());
        }
        let (rooms, found): (Vec<_>, Vec<_>) = origins.iter().unzip();
        let inviters: Vec<_> = found.iter().map(|origin| &origin.inviter).collect();
        let ghosts: Vec<_> = found.iter().map(|origin| &origin.ghost).collect();
        let values: [Value<'_>; 4] = [
            (&self.account, Type::TEXT),
            (&rooms, Type::TEXT_ARRAY),
            (&inviters, Type::TEXT_ARRAY),
            (&ghosts, Type::TEXT_ARRAY),
        ];
        transaction.run(RECORD, &values).await?;
        Ok(())
    }

    /// The replacement of an upgraded room has no inviter of its own: it gets that of the room.
    pub(super) async fn inherit_inviters(
        &self,
        transaction: &impl Transaction,
        upgrades: &[Upgrade],
    ) -> Result<(), BridgeError> {
        let sql = "
            INSERT INTO webhook_bridge.room_origins (account, room_id, inviter)
            SELECT $1, new.replacement, old.inviter
            FROM UNNEST($2, $3) AS new (room, replacement)
            JOIN webhook_bridge.room_origins AS old
                ON old.account = $1 AND old.room_id = new.room AND old.inviter IS NOT NULL
            WHERE NOT EXISTS (
                SELECT FROM webhook_bridge.rooms AS known
                WHERE known.account = $1 AND known.room_id = new.replacement
                  AND known.membership = 'joined')
            ON CONFLICT DO NOTHING";
        let by_room = |new: &Upgrade| (new.room_id.clone(), new.replacement.clone());
        self.run_for_pairs(transaction, sql, upgrades.iter().map(by_room)).await
    }

    pub async fn record_ghost(&self, room_id: &str, ghost: &str) -> Result<(), BridgeError> {
        let (rooms, ghosts, inviters) = ([room_id], [ghost], [None::<&str>]);
        let values: [Value<'_>; 4] = [
            (&self.account, Type::TEXT),
            (&&rooms[..], Type::TEXT_ARRAY),
            (&&inviters[..], Type::TEXT_ARRAY),
            (&&ghosts[..], Type::TEXT_ARRAY),
        ];
        self.connection().await?.execute_typed(RECORD, &values).await?;
        Ok(())
    }

    /// At startup: drop ghosts that no rule matches any more, and have the members of all joined rooms
    /// without a ghost fetched again, because the rules may be new.
    pub async fn recheck_ghosts(&self, is_ghost: impl Fn(&str) -> bool) -> Result<(), BridgeError> {
        let known = "
            SELECT DISTINCT ghost FROM webhook_bridge.room_origins
            WHERE account = $1 AND ghost IS NOT NULL";
        let drop = "
            UPDATE webhook_bridge.room_origins SET ghost = NULL
            WHERE account = $1 AND ghost = ANY($2)";
        let recheck = "
            UPDATE webhook_bridge.rooms SET members_known = false
            WHERE account = $1 AND membership = 'joined' AND NOT EXISTS (
                SELECT FROM webhook_bridge.room_origins AS origins
                WHERE origins.account = $1 AND origins.room_id = rooms.room_id
                  AND origins.ghost IS NOT NULL)";
        let connection = self.connection().await?;
        let account: Value<'_> = (&self.account, Type::TEXT);
        let rows = connection.query_typed(known, std::slice::from_ref(&account)).await?;
        let ghosts = rows.iter().map(|row| row.get::<_, String>(0));
        let stale: Vec<_> = ghosts.filter(|ghost| !is_ghost(ghost)).collect();
        connection.execute_typed(drop, &[account.clone(), (&stale, Type::TEXT_ARRAY)]).await?;
        connection.execute_typed(recheck, &[account]).await?;
        Ok(())
    }
}
