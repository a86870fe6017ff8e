//! The file's rows, and what they decode to.

use std::path::{Path, PathBuf};

use matrix_sdk_crypto::{
    Account, DeviceData, GossipRequest, GossippedSecret,
    olm::{
        InboundGroupSession, OutboundGroupSession, PickledInboundGroupSession,
        PrivateCrossSigningIdentity, Session, StaticAccountData,
    },
    store::types::{RoomKeyWithheldEntry, SecretsInboxItem},
    types::DeviceKeys,
};
use ruma::events::secret::request::SecretName;
use rusqlite::{Connection, OptionalExtension, types::ValueRef};
use zeroize::Zeroizing;

use super::{
    error::Failure,
    item::{Item, PickledAccountOf},
    rooms::Rooms,
    table::Table,
    values::Values,
};

/// The newest schema that this program knows: that of matrix-sdk-sqlite 0.19.
const NEWEST: u8 = 19;
/// Rows that are in memory at a time.
pub const BATCH: usize = 500;

/// A row as it is in the file.
pub struct Row {
    pub id: i64,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub flag: bool,
}

/// What a row decodes to.
pub enum Decoded {
    Item(Item),
    /// It is not carried over, for a reason that is to be named.
    Left(&'static str),
    /// The store's own, which a new store makes itself.
    Own,
}

/// An open copy of the file.
pub struct Source {
    pub file: PathBuf,
    pub version: u8,
    pub values: Values,
    pub rooms: Rooms,
    copy: Connection,
    own: Own,
}

/// What others cannot be decoded without.
struct Own {
    account: StaticAccountData,
    device_keys: DeviceKeys,
    has_backup_version: bool,
}

impl Source {
    pub fn version_of(copy: &Connection, file: &Path) -> Result<u8, Failure> {
        if !has_table(copy, Table::KeyValues.name()) {
            return Err(no_store(file));
        }
        let version: Option<Vec<u8>> = key_value(copy, file, "version")?;
        let missing =
            Table::ALL.iter().find(|table| table.is_required() && !has_table(copy, table.name()));
        match (version.as_deref(), missing) {
            (Some([version @ 1..=NEWEST]), None) => Ok(*version),
            (Some([1..=NEWEST]), Some(_)) => Err(no_store(file)),
            (Some([newer]), None) => Err(Failure::new(format!(
                "{} has version {newer} of the schema, this program knows {NEWEST}: use the \
                 matrix-postgres of the bot's version of the SDK",
                file.display()
            ))),
            _ => Err(no_store(file)),
        }
    }

    pub fn new(
        copy: Connection,
        file: PathBuf,
        version: u8,
        values: Values,
        rooms: Rooms,
    ) -> Result<Self, Failure> {
        let account = Self::account_of(&copy, &file, &values)?;
        let has_backup_version = key_value(&copy, &file, "backup_version_v1")?.is_some();
        let device_keys = DeviceData::from_account(&account).as_device_keys().clone();
        let account = account.static_data().clone();
        let own = Own { account, device_keys, has_backup_version };
        let mut source = Self { file, version, values, rooms, copy, own };
        // As the server knows it, with all its signatures.
        if let Some(device) = source.own_device()? {
            source.own.device_keys = device.as_device_keys().clone();
        }
        Ok(source)
    }

    /// One of the file's own values.
    pub fn own_value(&self, name: &str) -> Result<Option<Vec<u8>>, Failure> {
        key_value(&self.copy, &self.file, name)
    }

    fn account_of(copy: &Connection, file: &Path, values: &Values) -> Result<Account, Failure> {
        let pickle = key_value(copy, file, "account")?;
        let pickle = pickle.ok_or_else(|| {
            Failure::new(format!(
                "{} holds no account yet: there is nothing to move",
                file.display()
            ))
        })?;
        let account = values.message_pack(&pickle).and_then(|p| Account::from_pickle(p).ok());
        account.ok_or_else(|| {
            Failure::new(format!("the Olm account in {} cannot be decoded", file.display()))
        })
    }

    fn own_device(&self) -> Result<Option<DeviceData>, Failure> {
        let account = &self.own.account;
        let keys = [
            self.values.key("device", account.user_id.as_bytes()),
            self.values.key("device", account.device_id.as_bytes()),
        ];
        let sql = "SELECT data FROM device WHERE user_id = ?1 AND device_id = ?2";
        let found = self.copy.query_row(sql, keys.each_ref(), |row| row.get::<_, Vec<u8>>(0));
        let found = found.optional().map_err(|error| Failure::sqlite(&self.file, &error))?;
        Ok(found.and_then(|value| self.values.message_pack(&value)))
    }

    /// Whose keys the file holds.
    pub fn account(&self) -> &StaticAccountData {
        &self.own.account
    }

    pub fn has(&self, table: Table) -> bool {
        has_table(&self.copy, table.name())
    }

    pub fn count(&self, table: Table) -> Result<u64, Failure> {
        let sql = format!("SELECT count(*) FROM \"{}\"", table.name());
        let count = self.copy.query_row(&sql, (), |row| row.get::<_, i64>(0));
        let count = count.map_err(|error| Failure::sqlite(&self.file, &error))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// The next rows behind this one.
    pub fn rows(&self, table: Table, after: i64) -> Result<Vec<Row>, Failure> {
        let [key, value, flag] = table.columns();
        let sql = format!(
            "SELECT rowid, {key}, {value}, {flag} FROM \"{}\" WHERE rowid > ?1 ORDER BY rowid LIMIT {BATCH}",
            table.name()
        );
        let read = || {
            let mut statement = self.copy.prepare_cached(&sql)?;
            let rows = statement.query_map((after,), |row| {
                let flag = matches!(row.get_ref(3)?, ValueRef::Integer(flag) if flag != 0);
                let (key, value) = (bytes(row.get_ref(1)?), bytes(row.get_ref(2)?));
                Ok(Row { id: row.get(0)?, key, value, flag })
            })?;
            rows.collect::<Result<Vec<_>, _>>()
        };
        read().map_err(|error| Failure::sqlite(&self.file, &error))
    }

    /// Decodes a row; `None` if it cannot be.
    pub fn decode(&self, table: Table, row: &Row) -> Option<Decoded> {
        let values = &self.values;
        let value = row.value.as_slice();
        let item = match table {
            Table::Devices => Item::Device(values.message_pack(value)?),
            Table::UserIdentities => Item::UserIdentity(values.message_pack(value)?),
            Table::TrackedUsers => Item::TrackedUser(values.message_pack(value)?),
            Table::OlmSessions => {
                let (keys, pickle) = (self.own.device_keys.clone(), values.message_pack(value)?);
                Item::OlmSession(Box::new(Session::from_pickle(keys, pickle).ok()?))
            }
            Table::InboundSessions => self.inbound_session(row)?,
            Table::OutboundSessions => {
                let StaticAccountData { device_id, identity_keys, .. } = self.own.account.clone();
                let pickle = values.json(value)?;
                let session = OutboundGroupSession::from_pickle(device_id, identity_keys, pickle);
                Item::OutboundSession(Box::new(session.ok()?))
            }
            Table::MessageHashes => Item::MessageHash(rmp_serde::from_slice(value).ok()?),
            Table::KeyRequests => {
                let mut request: GossipRequest = values.message_pack(value)?;
                request.sent_out = row.flag;
                Item::KeyRequest(Box::new(request))
            }
            Table::SecretsBefore17 => {
                let secret: GossippedSecret = values.json(value)?;
                Item::Secret(secret.into())
            }
            Table::Secrets => return self.secret(row),
            Table::Withheld => {
                let entry: RoomKeyWithheldEntry = values.json(value)?;
                let ids = (entry.content.room_id(), entry.content.megolm_session_id());
                let (Some(room_id), Some(session_id)) = ids else {
                    return Some(Decoded::Left("it names no session"));
                };
                Item::Withheld(room_id.to_owned(), session_id.to_owned(), Box::new(entry))
            }
            Table::RoomSettings => match self.rooms.find(&row.key, table) {
                Some(room_id) => Item::RoomSettings(room_id, values.message_pack(value)?),
                None => return Some(Decoded::Left(UNKNOWN_ROOM)),
            },
            Table::BackedUpRooms => match self.rooms.find(&row.key, table) {
                Some(room_id) => Item::BackedUpRoom(room_id),
                None => return Some(Decoded::Left(UNKNOWN_ROOM)),
            },
            Table::RoomKeyBundles => Item::RoomKeyBundle(values.message_pack(value)?),
            Table::PendingKeyBundles => Item::PendingKeyBundle(values.message_pack(value)?),
            Table::KeyValues => return self.key_value(row),
            Table::Leases => return Some(Decoded::Own),
        };
        Some(Decoded::Item(item))
    }

    fn inbound_session(&self, row: &Row) -> Option<Item> {
        let mut pickle: PickledInboundGroupSession = self.values.message_pack(&row.value)?;
        // The column is newer than the pickle's flag. Without a backup version no backup holds the key.
        pickle.backed_up = row.flag && self.own.has_backup_version;
        Some(Item::InboundSession(Box::new(InboundGroupSession::from_pickle(pickle).ok()?)))
    }

    fn secret(&self, row: &Row) -> Option<Decoded> {
        let secret: String = self.values.json(&row.value)?;
        let name = SECRET_NAMES
            .into_iter()
            .find(|name| self.values.key(Table::Secrets.name(), name) == row.key);
        let name = match (name, self.values.is_encrypted()) {
            (Some(name), _) => name.to_owned(),
            (None, false) => String::from_utf8(row.key.clone()).ok()?,
            (None, true) => return Some(Decoded::Left("its name is hashed and not known")),
        };
        let secret = Zeroizing::new(secret);
        Some(Decoded::Item(Item::Secret(SecretsInboxItem {
            secret_name: SecretName::from(name),
            secret,
        })))
    }

    /// The names of custom values and of the store's own are not hashed.
    fn key_value(&self, row: &Row) -> Option<Decoded> {
        let values = &self.values;
        let value = row.value.as_slice();
        let name = String::from_utf8(row.key.clone()).ok()?;
        let item = match name.as_str() {
            "version" | "cipher" => return Some(Decoded::Own),
            "generation-counter" if self.version < 16 => return Some(Decoded::Own),
            "account" => {
                let account = Account::from_pickle(values.message_pack(value)?).ok()?;
                Item::OlmAccount(Box::new(PickledAccountOf::new(&account)?))
            }
            "identity" => {
                let pickle = values.message_pack(value)?;
                let identity = PrivateCrossSigningIdentity::from_pickle(pickle).ok()?;
                Item::PrivateIdentity(Box::new(identity))
            }
            "next_batch_token" => match values.message_pack::<Option<String>>(value)? {
                Some(token) => Item::SyncToken(token),
                None => return Some(Decoded::Own),
            },
            "backup_version_v1" => Item::BackupVersion(values.message_pack(value)?),
            "recovery_key_v1" => Item::BackupDecryptionKey(values.message_pack(value)?),
            "dehydrated_device_pickle_key" => {
                Item::DehydratedDeviceKey(values.message_pack(value)?)
            }
            _ => Item::CustomValue(name, values.bytes(value)?.to_vec()),
        };
        Some(Decoded::Item(item))
    }
}

const UNKNOWN_ROOM: &str =
    "its room's id is hashed, and no other table and no state store in the folder has that room";

/// Those that the SDK requests.
const SECRET_NAMES: [&str; 4] = [
    "m.cross_signing.master",
    "m.cross_signing.self_signing",
    "m.cross_signing.user_signing",
    "m.megolm_backup.v1",
];

pub fn has_table(copy: &Connection, name: &str) -> bool {
    let sql = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1";
    copy.query_row(sql, (name,), |_| Ok(())).is_ok()
}

/// A value of the table `kv`.
pub fn key_value(copy: &Connection, file: &Path, name: &str) -> Result<Option<Vec<u8>>, Failure> {
    let sql = "SELECT value FROM kv WHERE key = ?1";
    let found = copy.query_row(sql, (name,), |row| Ok(bytes(row.get_ref(0)?))).optional();
    found.map_err(|error| Failure::sqlite(file, &error))
}

fn bytes(value: ValueRef<'_>) -> Vec<u8> {
    match value {
        ValueRef::Blob(bytes) | ValueRef::Text(bytes) => bytes.to_vec(),
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => Vec::new(),
    }
}

fn no_store(file: &Path) -> Failure {
    Failure::new(format!(
        "{} is a SQLite database, but no crypto store of matrix-sdk-sqlite: that is called \
         matrix-sdk-crypto.sqlite3",
        file.display()
    ))
}
