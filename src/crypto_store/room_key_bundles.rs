//! Shared room history (MSC4268): bundles received, bundles awaited, and rooms whose keys have all
//! been fetched from the backup.

use matrix_sdk_common::ruma::{RoomId, UserId};
use matrix_sdk_crypto::store::types::{RoomPendingKeyBundleDetails, StoredRoomKeyBundleData};
use tokio_postgres::types::Type;

use crate::{
    Error,
    account::{
        OpenAccount,
        cipher::{Codec, Key, column},
        write::batch::Batch,
    },
    postgres::statement::{Sql, delete_by_key, get_by_key, upsert_by_key},
};

const RECEIVED: &str = "room_key_bundles";
const PENDING: &str = "pending_key_bundles";
const BACKED_UP: &str = "backed_up_rooms";

static GET_RECEIVED: Sql = get_by_key!("room_key_bundles", "room_id", "sender_user");
static UPSERT_RECEIVED: Sql = upsert_by_key!("room_key_bundles", "room_id", "sender_user");

static GET_PENDING: Sql = get_by_key!("pending_key_bundles", "room_id");
static UPSERT_PENDING: Sql = upsert_by_key!("pending_key_bundles", "room_id");
static DELETE_PENDING: Sql = delete_by_key!("pending_key_bundles", "room_id");

static ALL_PENDING: Sql = Sql {
    name: "pending_key_bundles.all",
    template: "SELECT room_id, data FROM {schema}.pending_key_bundles WHERE account_id = $1",
    types: &[Type::INT8],
};

static GET_BACKED_UP: Sql = Sql {
    name: "backed_up_rooms.get",
    template: "SELECT 1 FROM {schema}.backed_up_rooms WHERE account_id = $1 AND room_id = $2",
    types: &[Type::INT8, Type::BYTEA],
};

static INSERT_BACKED_UP: Sql = Sql {
    name: "backed_up_rooms.insert",
    template: "
INSERT INTO {schema}.backed_up_rooms (account_id, room_id)
SELECT $1, u.room_id FROM unnest($2) AS u (room_id) WHERE {guarded} ON CONFLICT DO NOTHING",
    types: &[Type::INT8, Type::BYTEA_ARRAY],
};

pub(super) const STATEMENTS: &[&Sql] = &[
    &GET_RECEIVED,
    &UPSERT_RECEIVED,
    &GET_PENDING,
    &UPSERT_PENDING,
    &DELETE_PENDING,
    &ALL_PENDING,
    &GET_BACKED_UP,
    &INSERT_BACKED_UP,
];

pub(super) async fn received(
    account: &OpenAccount,
    room_id: &RoomId,
    sender: &UserId,
) -> Result<Option<StoredRoomKeyBundleData>, Error> {
    let codec = &account.codec;
    let (room_id, sender) = (codec.key(RECEIVED, room_id), codec.key(RECEIVED, sender));
    let Some(row) = account.query_opt(&GET_RECEIVED, &[&room_id, &sender]).await? else {
        return Ok(None);
    };
    codec.open(RECEIVED, &[&room_id, &sender], column(&row, 0, RECEIVED)?).map(Some)
}

pub(super) fn stage_received(
    batch: &mut Batch,
    codec: &Codec,
    bundle: &StoredRoomKeyBundleData,
) -> Result<(), Error> {
    let room_id = codec.key(RECEIVED, &bundle.bundle_data.room_id);
    let sender = codec.key(RECEIVED, &bundle.sender_user);
    let data = codec.seal(RECEIVED, &[&room_id, &sender], bundle)?;
    batch.put(&UPSERT_RECEIVED, [room_id.into(), sender.into()], [data.into()]);
    Ok(())
}

pub(super) async fn pending(
    account: &OpenAccount,
    room_id: &RoomId,
) -> Result<Option<RoomPendingKeyBundleDetails>, Error> {
    let room_id = account.codec.key(PENDING, room_id);
    let Some(row) = account.query_opt(&GET_PENDING, &[&room_id]).await? else { return Ok(None) };
    account.codec.open(PENDING, &[&room_id], column(&row, 0, PENDING)?).map(Some)
}

pub(super) async fn all_pending(
    account: &OpenAccount,
) -> Result<Vec<RoomPendingKeyBundleDetails>, Error> {
    let rows = account.query(&ALL_PENDING, &[]).await?;
    let details = rows.iter().map(|row| {
        let room_id = Key::of(row, 0, PENDING)?;
        account.codec.open(PENDING, &[&room_id], column(row, 1, PENDING)?)
    });
    details.collect()
}

/// Stages that a bundle is awaited, or with `None` that it no longer is.
pub(super) fn stage_pending(
    batch: &mut Batch,
    codec: &Codec,
    room_id: &RoomId,
    details: Option<&RoomPendingKeyBundleDetails>,
) -> Result<(), Error> {
    let room_id = codec.key(PENDING, room_id);
    match details {
        Some(details) => {
            let data = codec.seal(PENDING, &[&room_id], details)?;
            batch.put(&UPSERT_PENDING, [room_id.into()], [data.into()]);
        }
        None => batch.put(&DELETE_PENDING, [room_id.into()], []),
    }
    Ok(())
}

pub(super) async fn is_backed_up(account: &OpenAccount, room_id: &RoomId) -> Result<bool, Error> {
    let room_id = account.codec.key(BACKED_UP, room_id);
    Ok(account.query_opt(&GET_BACKED_UP, &[&room_id]).await?.is_some())
}

pub(super) fn stage_backed_up(batch: &mut Batch, codec: &Codec, room_id: &RoomId) {
    batch.put(&INSERT_BACKED_UP, [codec.key(BACKED_UP, room_id).into()], []);
}
