//! Our own device, as the store has it.

use matrix_sdk_common::ruma::{OwnedDeviceId, OwnedUserId};
use matrix_sdk_crypto::{
    Account,
    olm::PrivateCrossSigningIdentity,
    vodozemac::{Curve25519PublicKey, Ed25519PublicKey},
};

use super::account_data;
use crate::{Error, PostgresCryptoStore, account::StoreLane};

/// The public part of an account's own device, as its store has it. See [`PostgresCryptoStore::own_device`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnDevice {
    /// The user.
    pub user_id: OwnedUserId,
    /// The device.
    pub device_id: OwnedDeviceId,
    /// The key with which sessions are set up.
    pub curve25519: Curve25519PublicKey,
    /// The key with which the device signs.
    pub ed25519: Ed25519PublicKey,
    /// Whether the keys were ever uploaded.
    pub is_uploaded: bool,
    /// How many one-time keys the homeserver had when that was last heard of.
    pub uploaded_key_count: u64,
    /// The master key of the user's cross-signing identity, if its private part is stored.
    pub master_key: Option<Ed25519PublicKey>,
    /// The version of the key backup that is in use.
    pub backup_version: Option<String>,
    /// The public key of the backup's decryption key, in base64, if that is stored.
    pub backup_key: Option<String>,
}

impl PostgresCryptoStore {
    /// The account's own device as it is stored, for
    /// [`admin::check_device`](crate::admin::check_device); `None` before a machine was built on the store.
    /// It reads only, and no running machine learns of it.
    ///
    /// # Errors
    ///
    /// [`Error::CorruptRow`], [`Error::Database`] and others.
    pub async fn own_device(&self) -> Result<Option<OwnDevice>, Error> {
        own_device(&*self.operation()?).await
    }
}

async fn own_device(account: &StoreLane) -> Result<Option<OwnDevice>, Error> {
    let Some(pickle) = account_data::pickled_account(account).await? else { return Ok(None) };
    let olm_account = Account::from_pickle(pickle).map_err(|_| account_data::invalid_pickle())?;
    let identity = match account_data::pickled_identity(account).await? {
        Some(pickle) => {
            let identity = PrivateCrossSigningIdentity::from_pickle(pickle);
            Some(identity.map_err(|_| account_data::invalid_pickle())?)
        }
        None => None,
    };
    let master_key = match &identity {
        Some(identity) => identity.master_public_key().await.and_then(|key| key.get_first_key()),
        None => None,
    };
    let backup = account_data::load_backup_keys(account).await?;
    let keys = olm_account.identity_keys();
    Ok(Some(OwnDevice {
        user_id: olm_account.user_id.clone(),
        device_id: olm_account.device_id.clone(),
        curve25519: keys.curve25519,
        ed25519: keys.ed25519,
        is_uploaded: olm_account.shared(),
        uploaded_key_count: olm_account.uploaded_key_count(),
        master_key,
        backup_version: backup.backup_version,
        backup_key: backup.decryption_key.map(|key| key.megolm_v1_public_key().to_base64()),
    }))
}
