//! Whether the homeserver's view of a device is ours.

use std::collections::BTreeMap;

use matrix_sdk_common::ruma::{
    OneTimeKeyAlgorithm, UInt, api::client::keys::get_keys::v3::Response as KeysQuery,
    encryption::DeviceKeys as RawDeviceKeys, serde::Raw,
};
use matrix_sdk_crypto::types::{DeviceKeys, MasterPubkey, SelfSigningPubkey};

use super::check::Check;
use crate::crypto_store::OwnDevice;

const NEW_DEVICE: &str = "log the device out, run matrix-postgres reset-device, and let the bot log in \
                          again, with another device id";
const OTHER_KEYS: &str = "docs/troubleshooting.md#one-time-key-already-exists";
const KEY_BACKUP: &str = "docs/operations.md#backup-and-restore";
const UNSIGNED: &str = "docs/troubleshooting.md#the-bot-is-shown-as-not-verified";

/// Compares an account's own device with a homeserver's answer to `/keys/query` for its user. It sends
/// nothing: a bot calls it with an answer that it has.
///
/// A device whose keys are gone, but whose id was kept, is the commonest fault: the homeserver has other
/// keys under the id, refuses new one-time keys ("already exists"), and others encrypt for keys that are
/// lost. Only a new device helps.
///
/// ```no_run
/// # use matrix_sdk_common::ruma::api::client::keys::get_keys::v3::Response;
/// # async fn example(
/// #     store: matrix_sdk_postgres::PostgresCryptoStore,
/// #     answer: Response,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// use matrix_sdk_postgres::admin::{self, CheckStatus};
///
/// if let Some(own) = store.own_device().await? {
///     for check in admin::check_device(&own, &answer) {
///         if check.status == CheckStatus::Problem {
///             eprintln!("{}: {}: {:?}", check.name, check.found, check.advice);
///         }
///     }
/// }
/// # Ok(()) }
/// ```
pub fn check_device(own: &OwnDevice, answer: &KeysQuery) -> Vec<Check> {
    let devices = answer.device_keys.get(&own.user_id);
    let listed = devices.and_then(|devices| devices.get(&own.device_id));
    let keys = check_keys(own, listed);
    let signature = listed.map(|listed| check_signature(own, listed, answer));
    std::iter::once(keys).chain(signature).chain([check_master_key(own, answer)]).collect()
}

fn check_keys(own: &OwnDevice, listed: Option<&Raw<RawDeviceKeys>>) -> Check {
    const NAME: &str = "device keys";
    let device = format!("device {} of {}", own.device_id, own.user_id);
    let Some(listed) = listed else {
        if !own.is_uploaded {
            let found = format!("{device} has not uploaded its keys yet");
            return Check::warning(NAME, found, "start the bot, which uploads them");
        }
        let found = format!("the homeserver does not know {device}: it was logged out");
        return Check::problem(NAME, found, NEW_DEVICE, OTHER_KEYS);
    };
    let Ok(listed) = listed.deserialize_as_unchecked::<DeviceKeys>() else {
        let found = format!("the homeserver's keys of {device} cannot be read");
        return Check::problem(NAME, found, NEW_DEVICE, OTHER_KEYS);
    };
    if (listed.curve25519_key(), listed.ed25519_key()) != (Some(own.curve25519), Some(own.ed25519))
    {
        let found = format!(
            "the homeserver has other keys of {device}: the keys that belong to this id are gone, and one \
             time keys will be refused (\"already exists\")"
        );
        return Check::problem(NAME, found, NEW_DEVICE, OTHER_KEYS);
    }
    match listed.check_self_signature() {
        Ok(()) => Check::ok(NAME, format!("{device}: the homeserver has the same keys")),
        Err(_) => {
            let found = format!("the device's own signature of {device} does not verify");
            Check::problem(NAME, found, NEW_DEVICE, OTHER_KEYS)
        }
    }
}

fn check_signature(own: &OwnDevice, listed: &Raw<RawDeviceKeys>, answer: &KeysQuery) -> Check {
    const NAME: &str = "device signed";
    let key = answer.self_signing_keys.get(&own.user_id);
    let key = key.map(|key| key.deserialize_as_unchecked::<SelfSigningPubkey>());
    let listed = listed.deserialize_as_unchecked::<DeviceKeys>();
    match (key, listed) {
        (None, _) => {
            let found = "the user has no cross-signing identity: others see an unverified device";
            Check::warning(NAME, found, "bootstrap cross-signing").see(UNSIGNED)
        }
        (Some(Ok(key)), Ok(listed)) if key.verify_device_keys(&listed).is_ok() => {
            Check::ok(NAME, "the user's self-signing key has signed it")
        }
        (Some(_), _) => {
            let found =
                "the user's self-signing key has not signed it: others see an unverified device";
            Check::warning(NAME, found, "verify the device, or sign it with the private keys")
                .see(UNSIGNED)
        }
    }
}

fn check_master_key(own: &OwnDevice, answer: &KeysQuery) -> Check {
    const NAME: &str = "cross-signing identity";
    let Some(stored) = own.master_key else {
        return Check::ok(NAME, "its private keys are not kept here");
    };
    let listed = answer.master_keys.get(&own.user_id);
    let listed = listed.and_then(|key| key.deserialize_as_unchecked::<MasterPubkey>().ok());
    match listed.and_then(|key| key.get_first_key()) {
        Some(key) if key == stored => Check::ok(NAME, "the homeserver has the same master key"),
        Some(_) => {
            let found = "the homeserver has another master key: the identity was reset elsewhere";
            let advice = "import the new private keys, or bootstrap a new identity";
            Check::problem(NAME, found, advice, UNSIGNED)
        }
        None => {
            let found = "the homeserver has no master key, but its private part is kept here";
            Check::warning(NAME, found, "upload it: bootstrap cross-signing").see(UNSIGNED)
        }
    }
}

/// Judges the counts of one-time keys that a `/sync` or a `/keys/upload` has answered with.
pub fn check_one_time_keys(own: &OwnDevice, counts: &BTreeMap<OneTimeKeyAlgorithm, UInt>) -> Check {
    const NAME: &str = "one-time keys";
    let count = counts.get(&OneTimeKeyAlgorithm::SignedCurve25519);
    let count = count.map_or(0, |count| u64::from(*count));
    let found = format!("{count} at the homeserver, {} by our own count", own.uploaded_key_count);
    match (own.is_uploaded, count) {
        (false, 1..) => {
            let found = format!("{found}, though this device has never uploaded any");
            Check::problem(NAME, found, NEW_DEVICE, OTHER_KEYS)
        }
        (true, 0) => {
            let advice = "start the bot, which uploads more; until then no other device can start a \
                          session with it";
            Check::warning(NAME, found, advice)
        }
        _ => Check::ok(NAME, found),
    }
}

/// Judges the homeserver's key backup: its version and public key (of `auth_data`), or `None` if it has
/// none.
pub fn check_key_backup(own: &OwnDevice, current: Option<(&str, Option<&str>)>) -> Check {
    const NAME: &str = "key backup";
    let has_key = |key: Option<&str>| own.backup_key.is_none() || own.backup_key.as_deref() == key;
    match (own.backup_version.as_deref(), current) {
        (None, None) => Check::ok(NAME, "none, and none is in use"),
        (Some(ours), None) => {
            let found = format!("version {ours} is in use, but the homeserver has no backup");
            let advice = "set up a new backup: room keys are saved nowhere else";
            Check::problem(NAME, found, advice, KEY_BACKUP)
        }
        (None, Some((theirs, _))) => {
            let found = format!("the homeserver has version {theirs}, which the bot does not use");
            Check::warning(NAME, found, "connect the bot to it, or delete it")
        }
        (Some(ours), Some((theirs, key))) if ours == theirs && has_key(key) => {
            Check::ok(NAME, format!("version {ours} is the homeserver's"))
        }
        (Some(ours), Some((theirs, _))) => {
            let found = format!(
                "version {ours} is in use, and the homeserver's is version {theirs} or has another key"
            );
            let advice = "connect the bot to the new version: it was made elsewhere";
            Check::problem(NAME, found, advice, KEY_BACKUP)
        }
    }
}
