//! Each table's rows, opened and decoded one by one: what an operator checks.

use matrix_sdk_crypto::{
    Account, DeviceData, GossipRequest, TrackedUser, UserIdentityData,
    olm::{
        PickledAccount, PickledCrossSigningIdentity, PickledOutboundGroupSession, PickledSession,
        PrivateCrossSigningIdentity,
    },
    store::types::{
        BackupDecryptionKey, DehydratedDeviceKey, RoomKeyWithheldEntry,
        RoomPendingKeyBundleDetails, RoomSettings, StoredRoomKeyBundleData,
    },
};
use serde::de::DeserializeOwned;
use tokio_postgres::Row;
use zeroize::Zeroizing;

use super::{
    account_data::{self, ACCOUNT_DATA, Item},
    backups::BACKUP_VERSIONS,
    custom_values::CUSTOM_VALUES,
    devices::{self, DEVICES},
    encrypted_rooms::ENCRYPTED_ROOMS,
    identities::USER_IDENTITIES,
    inbound_group_sessions::{self, INBOUND_SESSIONS},
    key_requests::KEY_REQUESTS,
    message_hashes::MESSAGE_HASHES,
    olm_sessions::OLM_SESSIONS,
    outbound_group_sessions::OUTBOUND_SESSIONS,
    room_key_bundles::{BACKED_UP_ROOMS, PENDING_KEY_BUNDLES, ROOM_KEY_BUNDLES},
    secrets::SECRETS_INBOX,
    sync_tokens::SYNC_TOKENS,
    tracked_users::TRACKED_USERS,
    withheld::WITHHELD_SESSIONS,
};
use crate::{
    Error,
    account::cipher::{Codec, Key, column},
    postgres::statement::{Column, ColumnType, Table},
};

/// How the rows of a table are read in the order of their primary key, and checked.
pub(crate) struct Inspected {
    pub(crate) table: &'static Table,
    /// The primary key after `account_id`.
    pub(crate) key: &'static [Column],
    /// The columns that are read after the key.
    pub(crate) values: &'static str,
    /// Opens and decodes a row: its key, then its values.
    pub(crate) check: fn(&Codec, &Row) -> Result<(), Error>,
    /// Whether a row that does not decode can be set aside: the SDK goes on without it.
    pub(crate) can_be_spared: bool,
}

const fn table(table: &'static Table, check: fn(&Codec, &Row) -> Result<(), Error>) -> Inspected {
    Inspected { table, key: table.key, values: "data", check, can_be_spared: true }
}

pub(crate) static INSPECTED: [Inspected; 18] = [
    Inspected {
        // Without its Olm account the bot would begin a new device under the old one's id.
        can_be_spared: false,
        ..table(&ACCOUNT_DATA, account_data)
    },
    Inspected {
        // Its writes find a row by the version.
        key: &[Column("generation", ColumnType::Int8)],
        values: "version",
        can_be_spared: false,
        ..table(&BACKUP_VERSIONS, |_, _| Ok(()))
    },
    table(&CUSTOM_VALUES, |codec, row| {
        let (key, data) = sealed(row, &CUSTOM_VALUES)?;
        codec.open_bytes(CUSTOM_VALUES.name, &key.iter().collect::<Vec<_>>(), data).map(drop)
    }),
    table(&DEVICES, device),
    table(&ENCRYPTED_ROOMS, |codec, row| {
        open::<RoomSettings>(codec, row, &ENCRYPTED_ROOMS).map(drop)
    }),
    table(&USER_IDENTITIES, |codec, row| {
        let (identity, key) = open::<UserIdentityData>(codec, row, &USER_IDENTITIES)?;
        same(&codec.key(USER_IDENTITIES.name, identity.user_id()), &key[0], USER_IDENTITIES.name)
    }),
    Inspected {
        values: "data, false, sender_key, sender_data_type",
        ..table(&INBOUND_SESSIONS, inbound_group_sessions::check)
    },
    table(&KEY_REQUESTS, |codec, row| open::<GossipRequest>(codec, row, &KEY_REQUESTS).map(drop)),
    Inspected { values: "hash", ..table(&MESSAGE_HASHES, |_, _| Ok(())) },
    table(&OLM_SESSIONS, |codec, row| open::<PickledSession>(codec, row, &OLM_SESSIONS).map(drop)),
    table(&OUTBOUND_SESSIONS, |codec, row| {
        open_json::<PickledOutboundGroupSession>(codec, row, &OUTBOUND_SESSIONS)
    }),
    table(&ROOM_KEY_BUNDLES, |codec, row| {
        open::<StoredRoomKeyBundleData>(codec, row, &ROOM_KEY_BUNDLES).map(drop)
    }),
    table(&PENDING_KEY_BUNDLES, |codec, row| {
        open::<RoomPendingKeyBundleDetails>(codec, row, &PENDING_KEY_BUNDLES).map(drop)
    }),
    Inspected { values: "room_id", ..table(&BACKED_UP_ROOMS, |_, _| Ok(())) },
    table(&SECRETS_INBOX, |codec, row| open_json::<String>(codec, row, &SECRETS_INBOX)),
    table(&SYNC_TOKENS, |codec, row| open::<String>(codec, row, &SYNC_TOKENS).map(drop)),
    table(&TRACKED_USERS, |codec, row| {
        let (user, key) = open::<TrackedUser>(codec, row, &TRACKED_USERS)?;
        same(&codec.key(TRACKED_USERS.name, &user.user_id), &key[0], TRACKED_USERS.name)
    }),
    table(&WITHHELD_SESSIONS, |codec, row| {
        open_json::<RoomKeyWithheldEntry>(codec, row, &WITHHELD_SESSIONS)
    }),
];

/// The key of a row, and the sealed value after it.
fn sealed<'a>(row: &'a Row, table: &'static Table) -> Result<(Vec<Key>, &'a [u8]), Error> {
    let key = (0..table.key.len()).map(|index| Key::of(row, index, table.name));
    Ok((key.collect::<Result<_, _>>()?, column(row, table.key.len(), table.name)?))
}

/// Opens and decodes a row's value; returns it with the row's key.
fn open<T: DeserializeOwned>(
    codec: &Codec,
    row: &Row,
    table: &'static Table,
) -> Result<(T, Vec<Key>), Error> {
    let (key, data) = sealed(row, table)?;
    Ok((codec.open(table.name, &key.iter().collect::<Vec<_>>(), data)?, key))
}

/// The same for a value that is stored as JSON.
fn open_json<T: DeserializeOwned>(
    codec: &Codec,
    row: &Row,
    table: &'static Table,
) -> Result<(), Error> {
    let (key, data) = sealed(row, table)?;
    codec.open_json::<T>(table.name, &key.iter().collect::<Vec<_>>(), data).map(drop)
}

/// Compares the key in a value with its row's: in an account without encryption nothing else binds the two.
pub(super) fn same(derived: &Key, stored: &Key, table: &'static str) -> Result<(), Error> {
    match derived == stored {
        true => Ok(()),
        false => Err(Error::CorruptRow { table, reason: "the value belongs to another row" }),
    }
}

fn device(codec: &Codec, row: &Row) -> Result<(), Error> {
    let (device, key) = open::<DeviceData>(codec, row, &DEVICES)?;
    let derived = devices::key(codec, device.user_id(), device.device_id());
    same(&derived[0], &key[0], DEVICES.name)?;
    same(&derived[1], &key[1], DEVICES.name)
}

fn account_data(codec: &Codec, row: &Row) -> Result<(), Error> {
    const TABLE: &str = ACCOUNT_DATA.name;
    let (item, data): (i16, &[u8]) = (column(row, 0, TABLE)?, column(row, 1, TABLE)?);
    let unknown = || Error::CorruptRow { table: TABLE, reason: "an item of an unknown kind" };
    let item = Item::of(item).ok_or_else(unknown)?;
    let key = item.key(codec);
    let key = &[&key];
    match item {
        Item::OlmAccount => {
            let pickle: PickledAccount = codec.open(TABLE, key, data)?;
            Account::from_pickle(pickle).map(drop).map_err(|_| account_data::invalid_pickle())
        }
        Item::PrivateIdentity => {
            let pickle: PickledCrossSigningIdentity = codec.open(TABLE, key, data)?;
            let identity = PrivateCrossSigningIdentity::from_pickle(pickle);
            identity.map(drop).map_err(|_| account_data::invalid_pickle())
        }
        Item::BackupDecryptionKey => codec.open::<BackupDecryptionKey>(TABLE, key, data).map(drop),
        Item::BackupVersion => codec.open::<String>(TABLE, key, data).map(Zeroizing::new).map(drop),
        Item::DehydratedDeviceKey => codec.open::<DehydratedDeviceKey>(TABLE, key, data).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::size::TABLES, INSPECTED};

    #[test]
    fn every_table_of_the_store_is_inspected() {
        for table in TABLES {
            let found = INSPECTED.iter().filter(|inspected| inspected.table.name == table.name);
            assert_eq!(found.count(), 1, "{}", table.name);
        }
    }
}
