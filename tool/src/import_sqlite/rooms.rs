//! The ids of rooms, for tables that only have their hashes.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
};

use matrix_sdk_crypto::store::types::{
    RoomKeyWithheldEntry, RoomPendingKeyBundleDetails, StoredRoomKeyBundleData,
};
use ruma::{OwnedRoomId, RoomId};
use rusqlite::Connection;
use serde::Deserialize;

use super::{
    error::Failure,
    snapshot,
    source::{has_table, key_value},
    table::Table,
    values::Values,
};
use crate::secrets::Secret;

/// The state store's file, in the folder of the crypto store's.
const STATE_STORE: &str = "matrix-sdk-state.sqlite3";
const HASHED: [Table; 2] = [Table::RoomSettings, Table::BackedUpRooms];

/// Known rooms by the form in which a table has them.
#[derive(Default)]
pub struct Rooms {
    known: HashMap<(Table, Vec<u8>), OwnedRoomId>,
    /// What is wrong with the state store's file, if anything is.
    pub warning: Option<String>,
}

/// The field that all of them have.
#[derive(Deserialize)]
struct WithRoom {
    room_id: OwnedRoomId,
}

impl Rooms {
    pub fn find(&self, key: &[u8], table: Table) -> Option<OwnedRoomId> {
        self.known.get(&(table, key.to_vec())).cloned()
    }

    /// Collects the rooms that other tables and the state store name.
    pub fn collect(
        copy: &Connection,
        values: &Values,
        file: &Path,
        secret: Option<&Secret>,
    ) -> Result<Self, Failure> {
        let mut rooms = Self::default();
        let keys = hashed_keys(copy, file)?;
        if keys.is_empty() {
            return Ok(rooms);
        }
        let mut ids = BTreeSet::new();
        if values.is_encrypted() {
            ids = in_crypto_store(copy, values, file)?;
            match in_state_store(file, secret) {
                Ok(more) => ids.extend(more),
                Err(Failure::Busy) => rooms.warning = Some(format!("{STATE_STORE} is locked")),
                Err(Failure::Final(message)) => rooms.warning = Some(message),
            }
        } else {
            // In clear.
            ids.extend(
                keys.iter().filter_map(|key| RoomId::parse(std::str::from_utf8(key).ok()?).ok()),
            );
        }
        for id in ids {
            for table in HASHED {
                let key = values.key(table.name(), id.as_bytes());
                rooms.known.insert((table, key), id.clone());
            }
        }
        Ok(rooms)
    }
}

fn hashed_keys(copy: &Connection, file: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    let mut keys = Vec::new();
    for table in HASHED.into_iter().filter(|table| has_table(copy, table.name())) {
        each(copy, file, table.name(), "room_id", |key| keys.push(key))?;
    }
    Ok(keys)
}

fn in_crypto_store(
    copy: &Connection,
    values: &Values,
    file: &Path,
) -> Result<BTreeSet<OwnedRoomId>, Failure> {
    let mut ids = BTreeSet::new();
    // One session for each room.
    let table = "inbound_group_session WHERE rowid IN \
                 (SELECT min(rowid) FROM inbound_group_session GROUP BY room_id)";
    each(copy, file, table, "data", |value| {
        ids.extend(values.message_pack::<WithRoom>(&value).map(|found| found.room_id));
    })?;
    each(copy, file, "outbound_group_session", "data", |value| {
        ids.extend(values.json::<WithRoom>(&value).map(|found| found.room_id));
    })?;
    if has_table(copy, Table::Withheld.name()) {
        each(copy, file, Table::Withheld.name(), "data", |value| {
            let entry = values.json::<RoomKeyWithheldEntry>(&value);
            ids.extend(entry.and_then(|entry| entry.content.room_id().map(ToOwned::to_owned)));
        })?;
    }
    if has_table(copy, Table::RoomKeyBundles.name()) {
        each(copy, file, Table::RoomKeyBundles.name(), "bundle_data", |value| {
            let bundle = values.message_pack::<StoredRoomKeyBundleData>(&value);
            ids.extend(bundle.map(|bundle| bundle.bundle_data.room_id));
        })?;
    }
    if has_table(copy, Table::PendingKeyBundles.name()) {
        each(copy, file, Table::PendingKeyBundles.name(), "data", |value| {
            let details = values.message_pack::<RoomPendingKeyBundleDetails>(&value);
            ids.extend(details.map(|details| details.room_id));
        })?;
    }
    Ok(ids)
}

/// All rooms that the bot has been in. The file has a key of its own, sealed with the same secret.
fn in_state_store(file: &Path, secret: Option<&Secret>) -> Result<Vec<OwnedRoomId>, Failure> {
    let beside = |file: &Path| Some(file.with_file_name(STATE_STORE)).filter(|file| file.exists());
    // Of a link, it may be beside the target.
    let found = beside(file).or_else(|| beside(&file.canonicalize().ok()?));
    let Some(file) = found else { return Ok(Vec::new()) };
    let copy = snapshot::take(&file, &mut |_, _| {})?.connection;
    if !has_table(&copy, "room_info") {
        return Err(Failure::new(format!("{} has no rooms", file.display())));
    }
    let values = Values::open(&file, key_value(&copy, &file, "cipher")?.as_deref(), secret)?;
    let mut ids = Vec::new();
    each(&copy, &file, "room_info", "data", |value| {
        ids.extend(values.json::<WithRoom>(&value).map(|found| found.room_id));
    })?;
    Ok(ids)
}

fn each(
    copy: &Connection,
    file: &Path,
    table: &str,
    column: &str,
    mut see: impl FnMut(Vec<u8>),
) -> Result<(), Failure> {
    let mut read = || {
        let mut statement = copy.prepare(&format!("SELECT {column} FROM {table}"))?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            // A row that is not what it should be is reported where it is decoded.
            if let Ok(value) = row.get(0) {
                see(value);
            }
        }
        Ok(())
    };
    read().map_err(|error| Failure::sqlite(file, &error))
}
