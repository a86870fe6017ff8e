//! Secret storage of the bot's user: account data with the key of the key backup and the private
//! cross-signing keys, encrypted with a key that other clients show as the recovery key.

use std::time::Duration;

use matrix_sdk_crypto::{
    secret_storage::{AesHmacSha2EncryptedData, SecretStorageKey},
    store::{SecretImportError, types::CrossSigningKeyExport},
};
use ruma::{
    api::client::config::get_global_account_data::v3::Request,
    events::{
        EventContentFromType, GlobalAccountDataEventType,
        secret::request::SecretName,
        secret_storage::{
            default_key::SecretStorageDefaultKeyEventContent, key::SecretStorageKeyEventContent,
            secret::SecretEventContent,
        },
    },
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::value::RawValue;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::{errors::BridgeError, refusal::HomeserverError, retry::Delays, run::Run};

/// The longest delay between attempts.
const MAX_DELAY: Duration = Duration::from_secs(15 * 60);

/// The opened storage.
pub struct SecretStorage<'a> {
    run: &'a Run,
    key: SecretStorageKey,
}

impl<'a> SecretStorage<'a> {
    /// Open the storage with the configured recovery key. `None` if there is no such key, no storage, or
    /// one with another key.
    pub async fn open(run: &'a Run) -> Result<Option<Self>, HomeserverError> {
        let Some(given) = &run.config.recovery_key else { return Ok(None) };
        let default =
            account_data(run, GlobalAccountDataEventType::SecretStorageDefaultKey).await?;
        let Some(default) = default else { return Ok(None) };
        let Ok(default) = serde_json::from_str::<SecretStorageDefaultKeyEventContent>(&default)
        else {
            warn!(
                "the secret storage of the bot's user cannot be read: its default key is malformed"
            );
            return Ok(None);
        };
        let kind = GlobalAccountDataEventType::SecretStorageKey(default.key_id);
        let Some(description) = account_data(run, kind.clone()).await? else { return Ok(None) };
        let key = open(given, &kind, &description);
        if key.is_none() {
            warn!("BRIDGE_RECOVERY_KEY does not open the secret storage of the bot's user");
        }
        Ok(key.map(|key| Self { run, key }))
    }

    /// A secret. `None`, which is logged unless there is none, if it cannot be read.
    pub async fn secret(&self, name: SecretName) -> Result<Option<SecretString>, HomeserverError> {
        let stored = account_data(self.run, name.clone().into()).await?;
        let Some(stored) = stored else { return Ok(None) };
        let secret = decrypt(&self.key, &name, &stored);
        if secret.is_none() {
            warn!(%name, "a secret in the secret storage of the bot's user cannot be read");
        }
        Ok(secret)
    }
}

async fn account_data(
    run: &Run,
    kind: GlobalAccountDataEventType,
) -> Result<Option<String>, HomeserverError> {
    let request = Request::new(run.config.user_id.clone(), kind);
    match run.homeserver.send(request).await {
        Ok(response) => Ok(Some(response.0)),
        Err(error) if error.code() == "M_NOT_FOUND" => Ok(None),
        Err(error) => Err(error),
    }
}

/// The key, if it is the described one.
fn open(
    given: &SecretString,
    kind: &GlobalAccountDataEventType,
    description: &str,
) -> Option<SecretStorageKey> {
    let description = RawValue::from_string(description.to_owned()).ok()?;
    let mut content =
        SecretStorageKeyEventContent::from_parts(&kind.to_string(), &description).ok()?;
    // The setting is a key. To try it as a passphrase would be work that the homeserver can make endless.
    content.passphrase = None;
    SecretStorageKey::from_account_data(given.expose_secret(), content).ok()
}

fn decrypt(key: &SecretStorageKey, name: &SecretName, stored: &str) -> Option<SecretString> {
    let content: SecretEventContent = serde_json::from_str(stored).ok()?;
    let encrypted: AesHmacSha2EncryptedData =
        content.encrypted.get(key.key_id())?.deserialize_as().ok()?;
    let secret = key.decrypt(&encrypted, name).ok()?;
    String::from_utf8(secret).ok().map(SecretString::from)
}

/// Import the private cross-signing keys, if the configured recovery key opens a storage that has them.
/// Waits while the homeserver does not respond: an identity must not be replaced because of that.
pub async fn import_identity(run: &Run) -> Result<(), BridgeError> {
    let mut delays = Delays::up_to(MAX_DELAY);
    let export = loop {
        match export_identity(run).await {
            Ok(Some(export)) => break export,
            Ok(None) => return Ok(()),
            Err(error) if error.ends_run() => return Err(error.into()),
            Err(error) => {
                warn!("the secret storage of the bot's user cannot be read: {error}");
                if !error.is_temporary() {
                    return Ok(());
                }
                sleep(delays.next(error.retry_after())).await;
            }
        }
    };
    match run.crypto.machine().await?.import_cross_signing_keys(export).await {
        Ok(status) if status.is_complete() => {
            info!("the private cross-signing keys were in the secret storage of the bot's user");
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(SecretImportError::Store(error)) => Err(error.into()),
        Err(error) => {
            warn!("the private cross-signing keys in the secret storage cannot be used: {error}");
            Ok(())
        }
    }
}

async fn export_identity(run: &Run) -> Result<Option<CrossSigningKeyExport>, HomeserverError> {
    let Some(storage) = SecretStorage::open(run).await? else { return Ok(None) };
    let secret = async |name| {
        let secret = storage.secret(name).await?;
        Ok::<_, HomeserverError>(secret.map(|secret| secret.expose_secret().to_owned()))
    };
    let mut export = CrossSigningKeyExport::default();
    export.master_key = secret(SecretName::CrossSigningMasterKey).await?;
    // An import without it proves nothing, but would mark any published identity as verified.
    if export.master_key.is_none() {
        return Ok(None);
    }
    export.self_signing_key = secret(SecretName::CrossSigningSelfSigningKey).await?;
    export.user_signing_key = secret(SecretName::CrossSigningUserSigningKey).await?;
    Ok(Some(export))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const KIND: &str = "m.secret_storage.key.abc";

    fn stored(key: &SecretStorageKey, name: &SecretName, secret: &str) -> String {
        let encrypted = key.encrypt(secret.as_bytes().to_vec(), name);
        json!({"encrypted": {key.key_id(): encrypted}}).to_string()
    }

    fn opened(given: &str, description: &Value) -> Option<SecretStorageKey> {
        open(&SecretString::from(given), &KIND.into(), &description.to_string())
    }

    #[test]
    fn the_storage_opens_with_its_own_key_only() {
        let key = SecretStorageKey::new();
        let mut description = serde_json::to_value(key.event_content()).unwrap();
        let given = key.to_base58();
        assert_eq!(opened(&given, &description).unwrap().key_id(), "abc");
        assert!(opened(&given.replace(' ', ""), &description).is_some());
        assert!(opened(&SecretStorageKey::new().to_base58(), &description).is_none());
        assert!(opened("not a key", &description).is_none());
        assert!(opened(&given, &json!({})).is_none());
        assert!(opened(&given, &json!({"algorithm": "m.other"})).is_none());
        // A passphrase is not tried: this one would take a day.
        description["passphrase"] =
            json!({"algorithm": "m.pbkdf2", "salt": "a", "iterations": u32::MAX});
        assert!(opened(&given, &description).is_some());
    }

    #[test]
    fn only_what_was_stored_with_the_key_under_its_name_is_a_secret() {
        let key = SecretStorageKey::new();
        let name = SecretName::RecoveryKey;
        let whole = stored(&key, &name, "a secret");
        assert_eq!(decrypt(&key, &name, &whole).unwrap().expose_secret(), "a secret");
        assert!(decrypt(&key, &SecretName::CrossSigningMasterKey, &whole).is_none());
        assert!(decrypt(&SecretStorageKey::new(), &name, &whole).is_none());
        let mut other: Value = serde_json::from_str(&whole).unwrap();
        other["encrypted"][key.key_id()]["ciphertext"] = json!("AAAA");
        assert!(decrypt(&key, &name, &other.to_string()).is_none());
        assert!(decrypt(&key, &name, "{}").is_none());
        assert!(decrypt(&key, &name, r#"{"encrypted": {}}"#).is_none());
    }
}
