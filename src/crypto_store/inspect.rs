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
    account_data::{ACCOUNT_DATA, Item},
    devices::{self, DEVICES},
    identities::USER_IDENTITIES,
    inbound_group_sessions,
    tracked_users::TRACKED_USERS,
};
use crate::{
    Error,
    account::cipher::{Codec, Key, column},
};

/// How the rows of a table are read in the order of their primary key, and checked.
pub(crate) struct Inspected {
    pub(crate) table: &'static str,
    /// The primary key behind `account_id`, with its types in SQL.
    pub(crate) key: &'static [(&'static str, &'static str)],
    /// What is read beside the key.
    pub(crate) values: &'static str,
    /// Opens and decodes a row: its key, then its values.
    pub(crate) check: fn(&Codec, &Row) -> Result<(), Error>,
    /// Whether a row that does not decode can be set aside: the SDK goes on without it.
    pub(crate) can_be_spared: bool,
}

const fn table(
    table: &'static str,
    key: &'static [(&'static str, &'static str)],
    check: fn(&Codec, &Row) -> Result<(), Error>,
) -> Inspected {
    Inspected { table, key, values: "data", check, can_be_spared: true }
}

const USER: (&str, &str) = ("user_id", "bytea");
const ROOM: (&str, &str) = ("room_id", "bytea");
const SESSION: (&str, &str) = ("session_id", "bytea");

pub(crate) static INSPECTED: [Inspected; 18] = [
    Inspected {
        // Without its Olm account the bot would begin a new device under the old one's id.
        can_be_spared: false,
        ..table("account_data", &[("item", "smallint")], account_data)
    },
    Inspected {
        values: "version",
        can_be_spared: false,
        ..table("backup_versions", &[("generation", "integer")], |_, _| Ok(()))
    },
    table("custom_values", &[("key", "bytea")], |codec, row| {
        let key = Key::of(row, 0, "custom_values")?;
        let data = column(row, 1, "custom_values")?;
        codec.open_bytes("custom_values", &[&key], data).map(drop)
    }),
    table("devices", &[USER, ("device_id", "bytea")], device),
    table("encrypted_rooms", &[ROOM], |codec, row| {
        one::<RoomSettings>(codec, row, "encrypted_rooms")
    }),
    table("user_identities", &[USER], |codec, row| {
        let key = Key::of(row, 0, USER_IDENTITIES.name)?;
        let identity: UserIdentityData = open(codec, row, USER_IDENTITIES.name, &[&key])?;
        same(&codec.key(USER_IDENTITIES.name, identity.user_id()), &key, USER_IDENTITIES.name)
    }),
    Inspected {
        values: "data, false, sender_key, sender_data_type",
        ..table("megolm_inbound_sessions", &[ROOM, SESSION], inbound_group_sessions::check)
    },
    table("key_requests", &[("request_id", "bytea")], |codec, row| {
        one::<GossipRequest>(codec, row, "key_requests")
    }),
    Inspected { values: "hash", ..table("message_hashes", &[("hash", "bytea")], |_, _| Ok(())) },
    table("olm_sessions", &[("sender_key", "bytea"), SESSION], |codec, row| {
        two::<PickledSession>(codec, row, "olm_sessions")
    }),
    table("megolm_outbound_sessions", &[ROOM], |codec, row| {
        one_json::<PickledOutboundGroupSession>(codec, row, "megolm_outbound_sessions")
    }),
    table("room_key_bundles", &[ROOM, ("sender_user", "bytea")], |codec, row| {
        two::<StoredRoomKeyBundleData>(codec, row, "room_key_bundles")
    }),
    table("pending_key_bundles", &[ROOM], |codec, row| {
        one::<RoomPendingKeyBundleDetails>(codec, row, "pending_key_bundles")
    }),
    Inspected { values: "room_id", ..table("backed_up_rooms", &[ROOM], |_, _| Ok(())) },
    table("secrets_inbox", &[("secret_name", "bytea"), ("secret_hash", "bytea")], |codec, row| {
        two_json::<String>(codec, row, "secrets_inbox")
    }),
    table("sync_tokens", &[], |codec, row| {
        let data = column(row, 0, "sync_tokens")?;
        codec.open::<String>("sync_tokens", &[], data).map(drop)
    }),
    table("tracked_users", &[USER], |codec, row| {
        let key = Key::of(row, 0, TRACKED_USERS.name)?;
        let user: TrackedUser = open(codec, row, TRACKED_USERS.name, &[&key])?;
        same(&codec.key(TRACKED_USERS.name, &user.user_id), &key, TRACKED_USERS.name)
    }),
    table("withheld_sessions", &[ROOM, SESSION], |codec, row| {
        two_json::<RoomKeyWithheldEntry>(codec, row, "withheld_sessions")
    }),
];

/// Opens the column behind the key.
fn open<T: DeserializeOwned>(
    codec: &Codec,
    row: &Row,
    table: &'static str,
    key: &[&Key],
) -> Result<T, Error> {
    codec.open(table, key, column(row, key.len(), table)?)
}

fn one<T: DeserializeOwned>(codec: &Codec, row: &Row, table: &'static str) -> Result<(), Error> {
    open::<T>(codec, row, table, &[&Key::of(row, 0, table)?]).map(drop)
}

fn two<T: DeserializeOwned>(codec: &Codec, row: &Row, table: &'static str) -> Result<(), Error> {
    let key = [&Key::of(row, 0, table)?, &Key::of(row, 1, table)?];
    open::<T>(codec, row, table, &key).map(drop)
}

fn one_json<T: DeserializeOwned>(
    codec: &Codec,
    row: &Row,
    table: &'static str,
) -> Result<(), Error> {
    let key = Key::of(row, 0, table)?;
    codec.open_json::<T>(table, &[&key], column(row, 1, table)?).map(drop)
}

fn two_json<T: DeserializeOwned>(
    codec: &Codec,
    row: &Row,
    table: &'static str,
) -> Result<(), Error> {
    let key = [&Key::of(row, 0, table)?, &Key::of(row, 1, table)?];
    codec.open_json::<T>(table, &key, column(row, 2, table)?).map(drop)
}

/// In a plain account nothing binds a value to its row but what it says itself.
pub(super) fn same(derived: &Key, stored: &Key, table: &'static str) -> Result<(), Error> {
    match derived == stored {
        true => Ok(()),
        false => Err(Error::CorruptRow { table, reason: "the value belongs to another row" }),
    }
}

fn device(codec: &Codec, row: &Row) -> Result<(), Error> {
    let key = [Key::of(row, 0, DEVICES.name)?, Key::of(row, 1, DEVICES.name)?];
    let device: DeviceData = open(codec, row, DEVICES.name, &key.each_ref())?;
    let derived = devices::key(codec, device.user_id(), device.device_id());
    same(&derived[0], &key[0], DEVICES.name)?;
    same(&derived[1], &key[1], DEVICES.name)
}

fn account_data(codec: &Codec, row: &Row) -> Result<(), Error> {
    const TABLE: &str = ACCOUNT_DATA.name;
    let (item, data): (i16, &[u8]) = (column(row, 0, TABLE)?, column(row, 1, TABLE)?);
    let invalid = || Error::CorruptRow { table: TABLE, reason: "the pickle is invalid" };
    let unknown = || Error::CorruptRow { table: TABLE, reason: "an item of an unknown kind" };
    let item = Item::of(item).ok_or_else(unknown)?;
    let key = item.key(codec);
    let key = &[&key];
    match item {
        Item::OlmAccount => {
            let pickle: PickledAccount = codec.open(TABLE, key, data)?;
            Account::from_pickle(pickle).map(drop).map_err(|_| invalid())
        }
        Item::PrivateIdentity => {
            let pickle: PickledCrossSigningIdentity = codec.open(TABLE, key, data)?;
            PrivateCrossSigningIdentity::from_pickle(pickle).map(drop).map_err(|_| invalid())
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
            let found = INSPECTED.iter().filter(|inspected| inspected.table == table.name);
            assert_eq!(found.count(), 1, "{}", table.name);
        }
    }
}
