//! The delivery queue: order, states and retention of events.

use std::time::{Duration, Instant};

use matrix_sdk_postgres::deadpool_postgres::tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

use super::Inbox;
use crate::errors::BridgeError;

/// How long a message without its key blocks later ones of its room. Keys often arrive shortly after
/// the message.
const KEY_GRACE: Duration = Duration::from_secs(5);
/// A message received within this time blocks its room for `KEY_GRACE` once more after a start.
const KEY_GRACE_AT_START: Duration = Duration::from_secs(60 * 60);

/// A message is dead-lettered after this many rejections by the webhook.
pub const MAX_REJECTIONS: i32 = 5;

/// The ids of delivered events are kept this long, to deduplicate.
const DELIVERED_RETENTION_DAYS: i32 = 30;
/// The newest events of each room are kept for ever: a restored homeserver may return them again.
const RETAINED_PER_ROOM: i64 = 200;

/// Dead letters are kept this long, for an operator to inspect.
const FAILED_RETENTION_DAYS: i32 = 90;

/// The next event of a room.
#[derive(Clone, Debug)]
pub struct Queued {
    pub event_id: String,
    pub json: Vec<u8>,
    /// How often the webhook has rejected it.
    pub rejections: i32,
    /// The webhook has rejected it, and its retry is not due yet.
    pub too_early: bool,
    /// Its key was missing before.
    pub waited: bool,
    /// It was stored for the API before.
    pub sealed: bool,
    /// Time since it was stored.
    pub age: Duration,
}

/// Number of events per state.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    pub pending: i64,
    pub waiting: i64,
    pub failed: i64,
    pub gaps: i64,
    /// Age of the oldest pending message, in seconds.
    pub oldest_pending: f64,
}

/// The first message that blocks the room is looked for once: `MATERIALIZED`, not for each event.
pub(super) const DUE: &str = "
    WITH held AS MATERIALIZED (
        SELECT position, place FROM webhook_bridge.events
        WHERE account = $1 AND room_id = $2 AND state = 'waiting'
          AND received_at > now() - make_interval(secs => $3)
        ORDER BY position, place LIMIT 1)
    SELECT event_id, event, rejections, coalesce(retry_at > now(), false),
           extract(epoch FROM now() - received_at)::float8, waited, sealed
    FROM webhook_bridge.events AS due
    WHERE account = $1 AND room_id = $2 AND state = 'pending' AND event IS NOT NULL
      AND NOT EXISTS (
        SELECT FROM webhook_bridge.gaps
        WHERE gaps.account = $1 AND gaps.room_id = $2 AND gaps.position <= due.position)
      AND NOT EXISTS (
        SELECT FROM held WHERE (held.position, held.place) < (due.position, due.place))
    ORDER BY position, place LIMIT $4";

/// A condition per state, because there is an index per state.
pub(super) const COUNTS: &str = "
    SELECT pending.count,
           (SELECT count(*) FROM webhook_bridge.events WHERE account = $1 AND state = 'waiting'),
           (SELECT count(*) FROM webhook_bridge.events WHERE account = $1 AND state = 'failed'),
           (SELECT count(*) FROM webhook_bridge.gaps WHERE account = $1),
           coalesce(extract(epoch FROM now() - pending.oldest), 0)::float8
    FROM (SELECT count(*) AS count, min(received_at) AS oldest
          FROM webhook_bridge.events WHERE account = $1 AND state = 'pending') AS pending";

/// Starts from the old events: `$3` is the number of a room's newest events that are kept, less one.
pub(super) const PRUNE_DONE: &str = "
    WITH kept AS MATERIALIZED (
        SELECT rooms.room_id, first.position, first.place
        FROM (SELECT DISTINCT room_id FROM webhook_bridge.events
              WHERE account = $1 AND state IN ('delivered', 'redacted')
                AND done_at < now() - make_interval(days => $2)) AS rooms
        CROSS JOIN LATERAL (
            SELECT position, place FROM webhook_bridge.events AS newest
            WHERE account = $1 AND newest.room_id = rooms.room_id
            ORDER BY position DESC, place DESC OFFSET $3 LIMIT 1) AS first)
    DELETE FROM webhook_bridge.events AS old USING kept
    WHERE account = $1 AND old.room_id = kept.room_id
      AND state IN ('delivered', 'redacted') AND done_at < now() - make_interval(days => $2)
      AND (old.position, old.place) < (kept.position, kept.place)";

pub(super) const PRUNE_FAILED: &str = "
    DELETE FROM webhook_bridge.events
    WHERE account = $1 AND state = 'failed'
      AND coalesce(done_at, received_at) < now() - make_interval(days => $2)";

impl Inbox {
    /// At the first run of the process, have the rooms of recent messages without a key wait once more: the
    /// first sync may bring keys that were sent while the bridge was down. The messages are not tried again
    /// (`late_keys` looks up their sessions), because new ones would wait for that.
    pub fn hold_rooms(&self) {
        self.began.get_or_init(Instant::now);
    }

    /// A message without its key blocks its room while it is younger than this.
    fn key_grace(&self) -> Duration {
        match self.began.get() {
            Some(began) if began.elapsed() < KEY_GRACE => KEY_GRACE_AT_START,
            _ => KEY_GRACE,
        }
    }

    /// Whether a message blocks its room if its key is missing.
    pub fn is_held(&self, queued: &Queued) -> bool {
        queued.age < self.key_grace()
    }

    /// When the process starts, retry the dead letters that the webhook rejected. Each has one attempt,
    /// because newer messages of its room wait for it.
    pub async fn retry_rejected(&self) -> Result<(), BridgeError> {
        let retry = "
            UPDATE webhook_bridge.events
            SET state = 'pending', rejections = $2, retry_at = NULL, failure = NULL
            WHERE account = $1 AND state = 'failed' AND rejections > 0 AND event IS NOT NULL";
        let values = [(&self.account as _, Type::TEXT), (&(MAX_REJECTIONS - 1) as _, Type::INT4)];
        self.connection().await?.execute_typed(retry, &values).await?;
        Ok(())
    }

    /// Delete old delivered and failed events.
    pub async fn prune(&self) -> Result<u64, BridgeError> {
        let connection = self.connection().await?;
        let values = [
            (&self.account as _, Type::TEXT),
            (&DELIVERED_RETENTION_DAYS as _, Type::INT4),
            (&(RETAINED_PER_ROOM - 1) as _, Type::INT8),
        ];
        let done = connection.execute_typed(PRUNE_DONE, &values).await?;
        let values = [(&self.account as _, Type::TEXT), (&FAILED_RETENTION_DAYS as _, Type::INT4)];
        Ok(done + connection.execute_typed(PRUNE_FAILED, &values).await?)
    }

    /// Whether a room has pending events, due or not.
    pub async fn has_pending(&self, room_id: &str) -> Result<bool, BridgeError> {
        let sql = "
            SELECT EXISTS (SELECT FROM webhook_bridge.events
                           WHERE account = $1 AND room_id = $2 AND state = 'pending')";
        let values = [(&self.account as _, Type::TEXT), (&room_id as _, Type::TEXT)];
        Ok(self.connection().await?.query_typed_one(sql, &values).await?.get(0))
    }

    /// Rooms with pending events, the longest waiting first.
    pub async fn pending_rooms(&self) -> Result<Vec<String>, BridgeError> {
        let sql = "
            SELECT room_id FROM webhook_bridge.events
            WHERE account = $1 AND state = 'pending'
            GROUP BY room_id ORDER BY min(position)";
        let connection = self.connection().await?;
        let rows = connection.query_typed(sql, &[(&self.account, Type::TEXT)]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// The room's next events in order, up to the first open gap and up to the first message that has
    /// waited for its key for less than `KEY_GRACE`.
    pub async fn due(&self, room_id: &str, limit: i64) -> Result<Vec<Queued>, BridgeError> {
        let values = [
            (&self.account as _, Type::TEXT),
            (&room_id as _, Type::TEXT),
            (&self.key_grace().as_secs_f64() as _, Type::FLOAT8),
            (&limit as _, Type::INT8),
        ];
        let rows = self.connection().await?.query_typed(DUE, &values).await?;
        let queued = |row: &Row| Queued {
            event_id: row.get(0),
            json: row.get(1),
            rejections: row.get(2),
            too_early: row.get(3),
            age: Duration::try_from_secs_f64(row.get(4)).unwrap_or_default(),
            waited: row.get(5),
            sealed: row.get(6),
        };
        Ok(rows.iter().map(queued).collect())
    }

    pub async fn delivered(&self, room_id: &str, event_id: &str) -> Result<(), BridgeError> {
        let sql = "
            UPDATE webhook_bridge.events
            SET state = 'delivered', event = NULL, done_at = now(), failure = NULL
            WHERE account = $1 AND room_id = $2 AND event_id = $3";
        self.change_event(sql, room_id, event_id, &[]).await
    }

    /// The event's key is missing.
    pub async fn wait_for_key(&self, room_id: &str, event_id: &str) -> Result<(), BridgeError> {
        let sql = "
            UPDATE webhook_bridge.events SET state = 'waiting', waited = true
            WHERE account = $1 AND room_id = $2 AND event_id = $3 AND state = 'pending'";
        self.change_event(sql, room_id, event_id, &[]).await
    }

    /// The event's key arrived while the event was being marked as waiting.
    pub async fn release(&self, room_id: &str, event_id: &str) -> Result<(), BridgeError> {
        let sql = "
            UPDATE webhook_bridge.events SET state = 'pending'
            WHERE account = $1 AND room_id = $2 AND event_id = $3 AND state = 'waiting'";
        self.change_event(sql, room_id, event_id, &[]).await
    }

    /// The webhook rejected the event: retry after `delay`; until then its room waits.
    pub async fn retry_in(
        &self,
        room_id: &str,
        event_id: &str,
        delay: Duration,
    ) -> Result<(), BridgeError> {
        let sql = "
            UPDATE webhook_bridge.events
            SET rejections = rejections + 1, retry_at = now() + make_interval(secs => $4)
            WHERE account = $1 AND room_id = $2 AND event_id = $3";
        self.change_event(sql, room_id, event_id, &[(&delay.as_secs_f64(), Type::FLOAT8)]).await
    }

    /// Dead-letter the event: it blocks nothing, and is kept for an operator to inspect. One that is
    /// dead-lettered again is not kept longer.
    pub async fn failed(
        &self,
        room_id: &str,
        event_id: &str,
        failure: &str,
    ) -> Result<(), BridgeError> {
        let sql = "
            UPDATE webhook_bridge.events
            SET state = 'failed', failure = $4, retry_at = NULL, done_at = coalesce(done_at, now())
            WHERE account = $1 AND room_id = $2 AND event_id = $3 AND state <> 'redacted'";
        self.change_event(sql, room_id, event_id, &[(&failure, Type::TEXT)]).await
    }

    pub async fn counts(&self) -> Result<Counts, BridgeError> {
        let connection = self.connection().await?;
        let row = connection.query_typed_one(COUNTS, &[(&self.account, Type::TEXT)]).await?;
        Ok(Counts {
            pending: row.get(0),
            waiting: row.get(1),
            failed: row.get(2),
            gaps: row.get(3),
            oldest_pending: row.get(4),
        })
    }

    pub(super) async fn change_event(
        &self,
        sql: &str,
        room_id: &str,
        event_id: &str,
        more: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<(), BridgeError> {
        let mut values: Vec<(&(dyn ToSql + Sync), Type)> =
            vec![(&self.account, Type::TEXT), (&room_id, Type::TEXT), (&event_id, Type::TEXT)];
        values.extend(more.iter().cloned());
        self.connection().await?.execute_typed(sql, &values).await?;
        Ok(())
    }
}
