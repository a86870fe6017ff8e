//! Deletes rows that are no longer used, by age.

use std::time::{Duration, SystemTime};

use futures_util::TryStreamExt;
use matrix_sdk_crypto::{DeviceData, olm::PickledOutboundGroupSession};
use tokio_postgres::types::Type;

use super::{
    connection::{AdminConnection, Param, Transaction},
    quarantine::raise_maintenance,
    table_counts::{DeletedRows, TableCount},
    unlock::Unlocked,
};
use crate::{
    Access, DatabaseError, Error, OpenStoreError, PostgresStoreConfig,
    account::cipher::{Codec, Key, column},
    crypto_store::tables,
};

const OLM: &str = tables::OLM_SESSIONS.name;
const OUTBOUND: &str = tables::OUTBOUND_SESSIONS.name;
const DEVICES: &str = tables::DEVICES.name;

/// Nothing is older.
const LONGEST: Duration = Duration::from_secs(1000 * 365 * 24 * 3600);
/// The SDK rotates no session sooner.
const SHORTEST_ROTATION: Duration = Duration::from_secs(3600);
/// Nor does it use one for more messages.
const MOST_MESSAGES: u64 = 10_000;

/// Which rows [`prune`] deletes: each rule is off by default (`None`), and takes the age above which rows
/// are deleted, by the server's clock. End with `..Default::default()`: later versions may have more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PruneRules {
    /// Hashes of to-device messages that were processed. With them a message that is delivered twice is
    /// not reported as undecryptable; a homeserver repeats only what was not acknowledged, which is the last
    /// sync's. Safe from some days on.
    pub message_hashes: Option<Duration>,
    /// Notices that a room key was withheld. They only explain why a message cannot be read. Safe.
    pub withheld_sessions: Option<Duration>,
    /// Requests for keys and secrets that were sent, and not answered since. An answer that comes later is
    /// ignored, and the SDK requests the key again when it needs it. Safe from some days on.
    pub sent_requests: Option<Duration>,
    /// Olm sessions older than this, with devices that are not known any more: deleted ones, and those of
    /// users with whom no room is shared. A new session is set up when the device is met again; the first
    /// message that such a device sends on the old session cannot be read, so give months. Needs the
    /// account's passphrase or key.
    pub gone_devices: Option<Duration>,
    /// Outbound Megolm sessions that expired longer ago than this: they are replaced before the next message
    /// in any case. Safe. Needs the account's passphrase or key.
    pub expired_outbound_sessions: Option<Duration>,
    /// Room keys older than this. **Older messages can no longer be read**, unless the server-side
    /// backup holds the keys: for bots that never look back.
    pub room_keys: Option<Duration>,
}

/// Counts what [`prune`] would delete. It reads only.
///
/// # Errors
///
/// See [`prune`].
pub async fn count_prunable(
    config: &PostgresStoreConfig,
    rules: &PruneRules,
) -> Result<DeletedRows, OpenStoreError> {
    let pruning = Pruning::new(config, rules, Access::ReadOnly).await?;
    let transaction = pruning.admin.read().await?;
    let counted = pruning.run(&transaction, "SELECT FROM").await?;
    transaction.commit().await?;
    Ok(counted)
}

/// Deletes rows of an account by the rules that are on, in one transaction. It may run while a bot runs, which
/// forgets what it has cached.
///
/// # Errors
///
/// [`OpenStoreError::AccountNotFound`], what keeps a connection from being made, and
/// [`Error::CorruptRow`](crate::Error::CorruptRow) when a rule has to decode a row that does not.
/// Nothing was deleted then, unless the error says that the outcome of `COMMIT` is unknown.
///
/// ```no_run
/// # async fn example() -> Result<(), matrix_sdk_postgres::OpenStoreError> {
/// use std::time::Duration;
///
/// use matrix_sdk_postgres::{PostgresStoreConfig, admin};
///
/// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot");
/// let month = Some(Duration::from_secs(30 * 24 * 3600));
/// let rules = admin::PruneRules { message_hashes: month, ..Default::default() };
/// println!("{:?}", admin::prune(&config, &rules).await?.tables);
/// # Ok(()) }
/// ```
pub async fn prune(
    config: &PostgresStoreConfig,
    rules: &PruneRules,
) -> Result<DeletedRows, OpenStoreError> {
    let pruning = Pruning::new(config, rules, Access::default()).await?;
    let transaction = pruning.admin.write().await?;
    let pruned = pruning.run(&transaction, "DELETE FROM").await?;
    if pruned.tables.iter().any(|table| table.rows > 0) {
        let raised = raise_maintenance(&transaction, pruning.account_id).await;
        raised.map_err(|error| OpenStoreError::refused(error, "pruning"))?;
    }
    transaction.commit().await?;
    Ok(pruned)
}

struct Pruning {
    admin: AdminConnection,
    account: String,
    account_id: i64,
    /// `None` where no rule has to decode anything.
    codec: Option<Codec>,
    rules: PruneRules,
}

impl Pruning {
    async fn new(
        config: &PostgresStoreConfig,
        rules: &PruneRules,
        access: Access,
    ) -> Result<Self, OpenStoreError> {
        let (account, rules) = (config.account.clone(), rules.clone());
        if rules.gone_devices.is_some() || rules.expired_outbound_sessions.is_some() {
            let Unlocked { admin, account_id, codec } = Unlocked::open(config, access).await?;
            return Ok(Self { admin, account, account_id, codec: Some(codec), rules });
        }
        let admin = AdminConnection::new(config)?;
        let (account_id, _) = admin.account(config, access).await?;
        Ok(Self { admin, account, account_id, codec: None, rules })
    }

    async fn run(
        &self,
        transaction: &Transaction<'_>,
        verb: &str,
    ) -> Result<DeletedRows, OpenStoreError> {
        let mut tables = Vec::new();
        let by_age = [
            (tables::MESSAGE_HASHES.name, "", self.rules.message_hashes),
            (tables::WITHHELD_SESSIONS.name, "", self.rules.withheld_sessions),
            (tables::KEY_REQUESTS.name, " AND sent_out", self.rules.sent_requests),
            (tables::INBOUND_SESSIONS.name, "", self.rules.room_keys),
        ];
        let refused = |error| OpenStoreError::refused(error, "pruning");
        for (table, condition, age) in by_age {
            if let Some(age) = age {
                let rows = self.by_age(transaction, verb, table, condition, age, &[]).await;
                tables.push(TableCount { table, rows: rows.map_err(refused)? });
            }
        }
        if let (Some(codec), Some(age)) = (&self.codec, self.rules.gone_devices) {
            let known = self.known_devices(transaction, codec).await?;
            let condition = " AND NOT EXISTS (SELECT FROM unnest($3) AS u (key) \
                                              WHERE u.key = sender_key)";
            let known: [Param<'_>; 1] = [(&known, Type::BYTEA_ARRAY)];
            let rows = self.by_age(transaction, verb, OLM, condition, age, &known).await;
            tables.push(TableCount { table: OLM, rows: rows.map_err(refused)? });
        }
        if let (Some(codec), Some(age)) = (&self.codec, self.rules.expired_outbound_sessions) {
            let rows = self.expired(transaction, verb, codec, age).await?;
            tables.push(TableCount { table: OUTBOUND, rows });
        }
        Ok(DeletedRows::new(&self.account, tables))
    }

    async fn by_age(
        &self,
        transaction: &Transaction<'_>,
        verb: &str,
        table: &str,
        condition: &str,
        age: Duration,
        more: &[Param<'_>],
    ) -> Result<u64, DatabaseError> {
        let sql = format!(
            "{verb} {{schema}}.{table} WHERE account_id = $1 \
             AND created_at < now() - $2 * interval '1 second'{condition}"
        );
        // The server's times begin in 4714 BC.
        let seconds = age.min(LONGEST).as_secs_f64();
        let mut params: Vec<Param<'_>> =
            vec![(&self.account_id, Type::INT8), (&seconds, Type::FLOAT8)];
        params.extend(more.iter().cloned());
        transaction.execute(&sql, &params).await
    }

    /// The keys of the sessions with all known devices, as `olm_sessions` has them.
    async fn known_devices(
        &self,
        transaction: &Transaction<'_>,
        codec: &Codec,
    ) -> Result<Vec<Key>, OpenStoreError> {
        let sql = format!(
            "SELECT user_id, device_id, data FROM {{schema}}.{DEVICES} WHERE account_id = $1"
        );
        let mut known = Vec::new();
        let mut rows = transaction.stream(&sql, &[(&self.account_id, Type::INT8)]).await?;
        while let Some(row) = rows.try_next().await.map_err(DatabaseError::from)? {
            let key = [&Key::of(&row, 0, DEVICES)?, &Key::of(&row, 1, DEVICES)?];
            let device: DeviceData = codec.open(DEVICES, &key, column(&row, 2, DEVICES)?)?;
            known.extend(device.curve25519_key().map(|key| codec.key(OLM, key.to_base64())));
        }
        Ok(known)
    }

    /// One by one, if they are still what was decoded.
    async fn expired(
        &self,
        transaction: &Transaction<'_>,
        verb: &str,
        codec: &Codec,
        age: Duration,
    ) -> Result<u64, OpenStoreError> {
        let id = (&self.account_id as _, Type::INT8);
        let sql =
            format!("SELECT room_id, data, now() FROM {{schema}}.{OUTBOUND} WHERE account_id = $1");
        let mut expired = Vec::new();
        let mut rows = transaction.stream(&sql, std::slice::from_ref(&id)).await?;
        while let Some(row) = rows.try_next().await.map_err(DatabaseError::from)? {
            let (room_id, data) = (Key::of(&row, 0, OUTBOUND)?, column(&row, 1, OUTBOUND)?);
            let session: PickledOutboundGroupSession =
                codec.open_json(OUTBOUND, &[&room_id], data)?;
            if expired_for(&session, age, column(&row, 2, OUTBOUND)?) {
                expired.push((room_id, Key::stored(data)));
            }
        }
        let sql = format!(
            "{verb} {{schema}}.{OUTBOUND} WHERE account_id = $1 AND room_id = $2 AND data = $3"
        );
        let mut count = 0;
        for (room_id, data) in &expired {
            let params = [id.clone(), (room_id as _, Type::BYTEA), (data as _, Type::BYTEA)];
            count += transaction.execute(&sql, &params).await.map_err(Error::from)?;
        }
        Ok(count)
    }
}

/// Whether the SDK would have replaced the session longer ago than `age`. When it encrypted its last message
/// is not known: it was created before.
fn expired_for(session: &PickledOutboundGroupSession, age: Duration, now: SystemTime) -> bool {
    let created = Duration::from_secs(session.creation_time.get().into());
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let rotation = session.settings.rotation_period.max(SHORTEST_ROTATION);
    let messages = session.settings.rotation_period_msgs.clamp(1, MOST_MESSAGES);
    let used_up = session.invalidated || session.message_count >= messages;
    let life = if used_up { Duration::ZERO } else { rotation };
    now.saturating_sub(created).saturating_sub(life) > age
}
