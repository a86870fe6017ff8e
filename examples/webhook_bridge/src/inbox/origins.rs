//! What rooms' labels follow from: who invited the bot, and a ghost among the members. An inviter is
//! stored under the bot's user, because a new account of that user is not told again; a ghost under the
//! account, because it follows from that bridge's rules.

use std::collections::{BTreeMap, HashMap};

use matrix_sdk_postgres::deadpool_postgres::tokio_postgres::types::Type;

use super::{Inbox, Transaction, Value, run_for_pairs};
use crate::{errors::BridgeError, membership::Upgrade};

/// Where a room comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Who invited the bot.
    pub inviter: Option<String>,
    /// A member that a rule for ghosts matched.
    pub ghost: Option<String>,
}

const RECORD_INVITERS: &str = "
    INSERT INTO webhook_bridge.room_origins (account, room_id, inviter)
    SELECT $1, * FROM UNNEST($2, $3)
    ON CONFLICT (account, room_id) DO UPDATE SET inviter = excluded.inviter";
const RECORD_GHOSTS: &str = "
    INSERT INTO webhook_bridge.room_origins AS known (account, room_id, ghost)
    SELECT $1, * FROM UNNEST($2, $3)
    ON CONFLICT (account, room_id) DO UPDATE SET ghost = coalesce(known.ghost, excluded.ghost)";

impl Inbox {
    /// A room's origin, and whether its members are known, so that no ghost is overlooked.
    pub async fn origin(&self, room_id: &str) -> Result<(Origin, bool), BridgeError> {
        let sql = "
            SELECT coalesce(of_user.inviter, origins.inviter), origins.ghost,
                coalesce(rooms.members_known, false)
            FROM (SELECT $1 AS account, $2 AS room_id) AS wanted
            LEFT JOIN webhook_bridge.rooms AS rooms USING (account, room_id)
            LEFT JOIN webhook_bridge.room_origins AS origins USING (account, room_id)
            LEFT JOIN webhook_bridge.room_origins AS of_user
                ON of_user.account = $3 AND of_user.room_id = wanted.room_id";
        let values: [Value<'_>; 3] =
            [(&self.account, Type::TEXT), (&room_id, Type::TEXT), (&self.user, Type::TEXT)];
        let row = self.connection().await?.query_typed_one(sql, &values).await?;
        Ok((Origin { inviter: row.get(0), ghost: row.get(1) }, row.get(2)))
    }

    /// Record within a sync's transaction.
    pub(super) async fn record_origins(
        &self,
        transaction: &impl Transaction,
        origins: &HashMap<String, Origin>,
    ) -> Result<(), BridgeError> {
        let inviters = origins
            .iter()
            .filter_map(|(room, origin)| Some((room.clone(), origin.inviter.clone()?)));
        // In one order: another account of this user may write the same rows.
        let inviters = inviters.collect::<BTreeMap<_, _>>().into_iter();
        run_for_pairs(transaction, RECORD_INVITERS, &self.user, inviters).await?;
        let ghosts =
            origins.iter().filter_map(|(room, origin)| Some((room.clone(), origin.ghost.clone()?)));
        run_for_pairs(transaction, RECORD_GHOSTS, &self.account, ghosts).await
    }

    /// The replacement of an upgraded room has no inviter of its own: it gets that of the room.
    pub(super) async fn inherit_inviters(
        &self,
        transaction: &impl Transaction,
        upgrades: &[Upgrade],
    ) -> Result<(), BridgeError> {
        if upgrades.is_empty() {
            return Ok(());
        }
        let sql = "
            INSERT INTO webhook_bridge.room_origins (account, room_id, inviter)
            SELECT $1, new.replacement, old.inviter
            FROM UNNEST($2, $3) AS new (room, replacement)
            JOIN webhook_bridge.room_origins AS old
                ON old.account IN ($1, $4) AND old.room_id = new.room AND old.inviter IS NOT NULL
            WHERE NOT EXISTS (
                SELECT FROM webhook_bridge.rooms AS known
                WHERE known.account = $4 AND known.room_id = new.replacement
                  AND known.membership = 'joined')
            ON CONFLICT DO NOTHING";
        let rooms: Vec<_> = upgrades.iter().map(|new| &new.room_id).collect();
        let replacements: Vec<_> = upgrades.iter().map(|new| &new.replacement).collect();
        let values: [Value<'_>; 4] = [
            (&self.user, Type::TEXT),
            (&rooms, Type::TEXT_ARRAY),
            (&replacements, Type::TEXT_ARRAY),
            (&self.account, Type::TEXT),
        ];
        transaction.run(sql, &values).await?;
        Ok(())
    }

    pub async fn record_ghost(&self, room_id: &str, ghost: &str) -> Result<(), BridgeError> {
        let (rooms, ghosts) = ([room_id], [ghost]);
        let values: [Value<'_>; 3] = [
            (&self.account, Type::TEXT),
            (&&rooms[..], Type::TEXT_ARRAY),
            (&&ghosts[..], Type::TEXT_ARRAY),
        ];
        self.connection().await?.execute_typed(RECORD_GHOSTS, &values).await?;
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
