//! Responses of the key backup.

use matrix_sdk_crypto::types::RoomKeyBackupInfo;
use ruma::{
    UInt,
    api::client::backup::{KeyBackupData, add_backup_keys},
    serde::Raw,
};

use super::{Fields, ParseResponse, RawJson};

/// The homeserver's current backup.
pub struct BackupVersion {
    pub version: String,
    pub info: RoomKeyBackupInfo,
}

impl ParseResponse for BackupVersion {
    fn read(body: RawJson<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
        Ok(Self {
            version: fields.value("version").ok_or("it has no version")?,
            info: body.read().ok_or("its auth_data is malformed")?,
        })
    }
}

/// The version of a new backup.
pub struct NewBackup(pub String);

impl ParseResponse for NewBackup {
    fn read(_: RawJson<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
        Ok(Self(fields.value("version").ok_or("it has no version")?))
    }
}

/// An encrypted room key.
pub struct BackedUpKey(pub Raw<KeyBackupData>);

impl ParseResponse for BackedUpKey {
    fn read(body: RawJson<'_>, _: &Fields<'_>) -> Result<Self, &'static str> {
        Ok(Self(body.to_raw()))
    }
}

impl ParseResponse for add_backup_keys::v3::Response {
    fn read(_: RawJson<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
        let etag = fields.value("etag").unwrap_or_default();
        Ok(Self::new(etag, fields.value("count").unwrap_or(UInt::MIN)))
    }
}
