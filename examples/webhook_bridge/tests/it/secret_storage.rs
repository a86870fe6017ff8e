//! A recovery key that opens the secret storage of the bot's user, as other clients show it.

use matrix_sdk_crypto::{
    OlmMachine,
    secret_storage::SecretStorageKey,
    store::{CryptoStore, types::BackupDecryptionKey},
};
use ruma::{UserId, device_id, events::secret::request::SecretName};
use serde_json::{Value, json};

use crate::{
    cross_signing::until_signed,
    support::{BOT, Call, Harness, MatrixUser, Reply, matrix_error},
};

/// A secret storage on the homeserver, as another client has made it.
pub struct Storage {
    key: SecretStorageKey,
    pub recovery_key: String,
}

impl Storage {
    pub fn new(harness: &Harness) -> Self {
        let key = SecretStorageKey::new();
        let recovery_key = key.to_base58();
        let mut stored = harness.homeserver.stored.lock().unwrap();
        let description = serde_json::to_value(key.event_content()).unwrap();
        stored.account_data.insert(key.event_type().to_string(), description);
        let default = json!({"key": key.key_id()});
        stored.account_data.insert("m.secret_storage.default_key".to_owned(), default);
        drop(stored);
        Self { key, recovery_key }
    }

    /// With the key of a backup on the homeserver.
    fn with_backup(harness: &Harness) -> (Self, BackupDecryptionKey) {
        let (storage, key) = (Self::new(harness), BackupDecryptionKey::new());
        storage.store(harness, SecretName::RecoveryKey, &key.to_base64());
        let info = serde_json::to_value(key.to_backup_info()).unwrap();
        harness.homeserver.stored.lock().unwrap().backup.replace(info);
        (storage, key)
    }

    fn store(&self, harness: &Harness, name: SecretName, secret: &str) {
        let encrypted = self.key.encrypt(secret.as_bytes().to_vec(), &name);
        let encrypted: Value = serde_json::to_value(encrypted).unwrap();
        let content = json!({"encrypted": {self.key.key_id(): encrypted}});
        let mut stored = harness.homeserver.stored.lock().unwrap();
        stored.account_data.insert(name.to_string(), content);
    }

    /// Store the private cross-signing keys of that device.
    pub async fn store_identity(&self, harness: &Harness, other: &OlmMachine) {
        let keys = other.export_cross_signing_keys().await.unwrap().unwrap();
        for (name, key) in [
            (SecretName::CrossSigningMasterKey, keys.master_key.clone()),
            (SecretName::CrossSigningSelfSigningKey, keys.self_signing_key.clone()),
            (SecretName::CrossSigningUserSigningKey, keys.user_signing_key.clone()),
        ] {
            self.store(harness, name, &key.unwrap());
        }
    }
}

fn makes_backup(call: &Call) -> bool {
    call.path.starts_with("room_keys") && call.method != "GET"
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_the_backup_is_taken_from_the_secret_storage() {
    let harness = Harness::new().await;
    let (storage, key) = Storage::with_backup(&harness);
    let mut bridge = harness.ready_bridge(&[("BRIDGE_RECOVERY_KEY", &storage.recovery_key)]).await;
    let alice = MatrixUser::new(&harness.homeserver, "@alice:x").await;
    let backed_up =
        async |count: usize| harness.homeserver.stored.lock().unwrap().backup.keys.len() == count;
    harness.homeserver.push(json!({"to_device": {"events": alice.room_key("!r:x").await}}));
    bridge.until("the first key in the backup", async |_| backed_up(1).await).await;
    for backed_up in harness.homeserver.stored.lock().unwrap().backup.keys.values() {
        let data = serde_json::from_value(backed_up["session_data"].clone()).unwrap();
        key.decrypt_session_data(data).unwrap();
    }
    assert_eq!(bridge.stop().await, 0);
    let log = bridge.log();
    for secret in [&storage.recovery_key, &key.to_base64(), &key.to_base58()] {
        assert!(!log.contains(secret.as_str()), "{log}");
    }

    // It is in the store now: the setting is not needed any more, nor is the storage.
    harness.homeserver.stored.lock().unwrap().account_data.remove("m.megolm_backup.v1");
    let bridge = harness.bridge(&[("BRIDGE_KEY_BACKUP", "true")]);
    bridge.ready().await;
    harness.homeserver.push(json!({"to_device": {"events": alice.room_key("!q:x").await}}));
    bridge.until("the second key in the backup", async |_| backed_up(2).await).await;
}

/// The key that opens the secret storage is not made the key of a backup.
#[tokio::test(flavor = "multi_thread")]
async fn a_storage_without_a_key_of_a_backup_is_reported() {
    for malformed in [false, true] {
        let harness = Harness::new().await;
        let storage = Storage::new(&harness);
        if malformed {
            // Of another storage key.
            let other = Storage { key: SecretStorageKey::new(), recovery_key: String::new() };
            other.store(&harness, SecretName::RecoveryKey, &BackupDecryptionKey::new().to_base64());
        }
        let bridge = harness.ready_bridge(&[("BRIDGE_RECOVERY_KEY", &storage.recovery_key)]).await;
        bridge.until_logged("that does not have the key of a backup").await;
        assert_eq!(harness.homeserver.calls.count(makes_backup), 0);
        assert_eq!(bridge.metric("key_backup_enabled").await, Some(0.0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_with_another_key_is_left_alone() {
    let harness = Harness::new().await;
    Storage::with_backup(&harness);
    let other = SecretStorageKey::new().to_base58();
    let bridge = harness.ready_bridge(&[("BRIDGE_RECOVERY_KEY", &other)]).await;
    bridge.until_logged("has a key backup with another key").await;
    assert_eq!(harness.homeserver.calls.count(makes_backup), 0);
}

/// Otherwise the homeserver could publish an identity of its own, and sign other users with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_storage_without_the_identity_does_not_verify_the_published_one() {
    let harness = Harness::new().await;
    let bot = UserId::parse(BOT).unwrap();
    let other = OlmMachine::new(&bot, device_id!("OTHER")).await;
    publish_identity(&harness, &other).await;
    let storage = Storage::new(&harness);
    let mut bridge = harness.bridge(&[("BRIDGE_RECOVERY_KEY", &storage.recovery_key)]);
    bridge.until_logged("its private keys are not in this database").await;
    assert_eq!(bridge.stop().await, 0);

    let (store, machine) = harness.machine().await;
    let identity = machine.get_identity(&bot, None).await.unwrap().unwrap();
    assert!(!identity.own().unwrap().is_verified());
    drop(machine);
    store.close().await.unwrap();
}

/// Publishes the cross-signing identity that another device of the bot's user creates.
pub async fn publish_identity(harness: &Harness, other: &OlmMachine) -> Value {
    let identity = other.bootstrap_cross_signing(true).await.unwrap().upload_signing_keys_req;
    let published = json!({"master_key": identity.master_key,
        "self_signing_key": identity.self_signing_key,
        "user_signing_key": identity.user_signing_key});
    harness.homeserver.stored.lock().unwrap().cross_signing = published.clone();
    published
}

/// The identity that another client has created signs the bot's device.
#[tokio::test(flavor = "multi_thread")]
async fn the_identity_is_taken_from_the_secret_storage() {
    let harness = Harness::new().await;
    let bot = UserId::parse(BOT).unwrap();
    let other = OlmMachine::new(&bot, device_id!("PHONE")).await;
    let published = publish_identity(&harness, &other).await;
    let mut bridge = harness.bridge(&[]);
    bridge.until_logged("its private keys are not in this database").await;
    assert_eq!(bridge.stop().await, 0);

    let storage = Storage::new(&harness);
    storage.store_identity(&harness, &other).await;
    // While the storage cannot be read, the identity is not replaced.
    harness.homeserver.calls.rule(|call| {
        let is_secret = call.path.contains("/account_data/m.cross_signing.");
        is_secret.then(|| Reply::text(502, "<html>bad gateway</html>"))
    });
    let bridge = harness.bridge(&[
        ("BRIDGE_RECOVERY_KEY", &storage.recovery_key),
        ("BRIDGE_CROSS_SIGNING", "reset"),
    ]);
    bridge.until_logged("the secret storage of the bot's user cannot be read").await;
    harness.homeserver.calls.clear_rules();
    until_signed(&bridge).await;
    // With its signatures: a homeserver refuses the keys without them.
    let now = harness.homeserver.stored.lock().unwrap().cross_signing.clone();
    assert_eq!(now, published, "the identity was uploaded again");
    assert!(bridge.log().contains("were in the secret storage"), "{}", bridge.log());
}

/// The homeserver refuses the bridge's own identity; another client creates one, and stores its keys later.
#[tokio::test(flavor = "multi_thread")]
async fn an_identity_is_taken_from_the_secret_storage_after_the_start() {
    let harness = Harness::new().await;
    let bot = UserId::parse(BOT).unwrap();
    let other = OlmMachine::new(&bot, device_id!("PHONE")).await;
    let storage = Storage::new(&harness);
    let is_upload = |call: &Call| call.is("POST", "keys/device_signing/upload");
    harness
        .homeserver
        .calls
        .rule(move |call| is_upload(call).then(|| matrix_error(403, "M_FORBIDDEN")));
    let bridge = harness.bridge(&[("BRIDGE_RECOVERY_KEY", &storage.recovery_key)]);
    bridge.until_logged("the bot's device cannot be signed: ").await;
    publish_identity(&harness, &other).await;
    harness.homeserver.push(json!({"device_lists": {"changed": [BOT]}}));
    bridge.until_logged("its private keys are not in this database").await;
    storage.store_identity(&harness, &other).await;
    harness.homeserver.push(json!({"device_lists": {"changed": [BOT]}}));
    until_signed(&bridge).await;
    assert!(!bridge.log().contains("still not signed"), "{}", bridge.log());
    assert_eq!(harness.homeserver.calls.count(is_upload), 1);
}
