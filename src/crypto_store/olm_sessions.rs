//! Olm sessions, by the sender's Curve25519 key. Rows are not cached, as the SDK does that; the key set
//! shows which senders have none.
//!
//! Before the SDK encrypts for many devices, it reads the devices, and then their sessions one after
//! the other, under a lock of its own. So the sessions of devices that were just read are fetched
//! together with the first of them.

use matrix_sdk_crypto::{
    DeviceData,
    olm::{PickledSession, Session, StaticAccountData},
};
use tokio_postgres::types::Type;

use super::{
    deferred::{Group as Deferred, Saves, SendingRatchet},
    devices,
};
use crate::{
    Error,
    account::{
        StoreLane,
        cipher::{Codec, Key, column},
        write::batch::Batch,
    },
    postgres::{
        cell::Cells,
        database::Param,
        statement::{CacheIndex, Prefetched, Sql, Table, Upsert, bytea},
    },
};

const TABLE: &str = OLM_SESSIONS.name;

pub(crate) static OLM_SESSIONS: Table = Table {
    name: "olm_sessions",
    key: &[bytea("sender_key"), bytea("session_id")],
    values: &[bytea("data")],
    cache: Some(&BY_SENDER),
};

static BY_SENDER: CacheIndex = CacheIndex {
    table: &OLM_SESSIONS,
    group: &GET,
    row: None,
    keys: Some(&KEYS),
    prefetch: Some(Prefetched::Expected(&PREFETCH)),
    row_key: 1,
    keeps_rows: false,
};

// The sessions need our own device's keys to be unpickled: one statement fetches both.
static GET: Sql = Sql::new(
    "olm_sessions.get",
    "
SELECT session_id, data FROM {schema}.olm_sessions WHERE account_id = $1 AND sender_key = $2
UNION ALL
SELECT NULL, data FROM {schema}.devices WHERE account_id = $1 AND user_id = $3 AND device_id = $4",
    &[Type::INT8, Type::BYTEA, Type::BYTEA, Type::BYTEA],
);

static PREFETCH: Sql = Sql::new(
    "olm_sessions.prefetch",
    "
SELECT sender_key, session_id, data FROM {schema}.olm_sessions
WHERE account_id = $1 AND sender_key = ANY ($2)",
    &[Type::INT8, Type::BYTEA_ARRAY],
);

static KEYS: Sql = Sql::key_set("olm_sessions.keys", &OLM_SESSIONS);
static UPSERT: Upsert = Upsert::new("olm_sessions.upsert", &OLM_SESSIONS);

pub(super) const STATEMENTS: &[&Sql] = &[&GET, &PREFETCH, &KEYS, UPSERT.sql()];

pub(super) async fn get(
    account: &StoreLane,
    saves: &Saves,
    own: Option<StaticAccountData>,
    sender_key: &str,
) -> Result<Option<Vec<Session>>, Error> {
    let own = own.ok_or(Error::AccountUnset)?;
    let codec = &account.codec;
    let sender_key = codec.key(TABLE, sender_key);
    let [user_id, device_id] = devices::key(codec, &own.user_id, &own.device_id);
    let deferred = saves.rows(&Deferred::OlmSessions(sender_key.clone()));
    let prefetched = account.prefetched(&BY_SENDER, [&sender_key])?;
    let others: [Param<'_>; 2] = [&user_id, &device_id];
    let rows = match &prefetched {
        Some(_) => Vec::new(),
        None => account.query_unless_absent(&BY_SENDER, [&sender_key], &others).await?,
    };

    let mut own_device = None;
    let mut pickles: Vec<PickledSession> = Vec::new();
    let open = |session_id: &Key, data: &[u8]| codec.open(TABLE, &[&sender_key, session_id], data);
    for (session_id, row) in prefetched.iter().flat_map(|rows| rows.iter()) {
        let session_id = Key::of_cell(session_id, 0, TABLE)?;
        if !deferred.contains_key(&session_id) {
            pickles.push(open(&session_id, row.bytes(0, TABLE)?)?);
        }
    }
    for row in &rows {
        let data: &[u8] = column(row, 1, TABLE)?;
        if column::<Option<&[u8]>>(row, 0, TABLE)?.is_some() {
            let session_id = Key::of(row, 0, TABLE)?;
            if !deferred.contains_key(&session_id) {
                pickles.push(open(&session_id, data)?);
            }
        } else {
            own_device = Some(devices::open(codec, [&user_id, &device_id], data)?);
        }
    }
    for (session_id, row) in &deferred {
        if let Some(row) = row {
            pickles.push(open(session_id, row.bytes(0, TABLE)?)?);
        }
    }
    if pickles.is_empty() {
        return Ok(None);
    }
    let own_device: DeviceData = match own_device {
        // The own device may be deferred itself, or the query was skipped.
        _ if !deferred.is_empty() || prefetched.is_some() => {
            devices::own(account, saves, Some(own)).await?
        }
        Some(own_device) => own_device,
        None => return Err(devices::own_device_missing()),
    };
    let sessions = pickles.into_iter().map(|pickle| {
        let sending = SendingRatchet::of(&pickle);
        let session = Session::from_pickle(own_device.as_device_keys().clone(), pickle)
            .map_err(|_| Error::CorruptRow { table: TABLE, reason: "the pickle is invalid" })?;
        saves.record_read(session.session_id(), &sending);
        Ok(session)
    });
    sessions.collect::<Result<_, _>>().map(Some)
}

/// Announces that the sessions of these devices are likely to be read next.
pub(super) fn expect<'a>(account: &StoreLane, devices: impl IntoIterator<Item = &'a DeviceData>) {
    let keys = devices.into_iter().filter_map(|device| device.curve25519_key());
    account.expect(&BY_SENDER, keys.map(|key| [account.codec.key(TABLE, key.to_base64())]));
}

/// The key and the row of a session.
pub(super) struct SessionRow {
    pub(super) sender_key: Key,
    pub(super) session_id: Key,
    pub(super) row: Cells,
    pub(super) sending: SendingRatchet,
}

impl SessionRow {
    pub(super) async fn of(codec: &Codec, session: &Session) -> Result<Self, Error> {
        let pickle = session.pickle().await;
        let sender_key = codec.key(TABLE, session.sender_key().to_base64());
        let session_id = codec.key(TABLE, session.session_id());
        let row = [codec.seal(TABLE, &[&sender_key, &session_id], &pickle)?].into();
        Ok(Self { sender_key, session_id, row, sending: SendingRatchet::of(&pickle) })
    }
}

pub(super) fn stage(batch: &mut Batch, key: [&Key; 2], row: Cells) {
    batch.upsert(&UPSERT, key, row);
}
