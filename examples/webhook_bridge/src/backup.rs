//! The server-side key backup: created or joined with the recovery key, room keys uploaded in batches,
//! and fetched when one is missing.

use std::{io::Write, time::Duration};

use matrix_sdk_crypto::{olm::ExportedRoomKey, store::types::BackupDecryptionKey};
use ruma::{
    RoomId,
    api::client::backup::{
        add_backup_keys, create_backup_version, get_backup_keys_for_session, get_latest_backup_info,
    },
    events::secret::request::SecretName,
    serde::Raw,
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::value::to_raw_value;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::{
    errors::{BridgeError, exit_code},
    refusal::HomeserverError,
    responses::BackupVersion,
    retry::Delays,
    run::Run,
    secret_storage::SecretStorage,
};

/// The longest delay between attempts.
const MAX_DELAY: Duration = Duration::from_secs(15 * 60);

/// Set the backup up and upload room keys; returns only if it cannot be used.
pub async fn run(run: &Run) -> Result<(), BridgeError> {
    let mut delays = Delays::up_to(MAX_DELAY);
    // An earlier run of this process may have used a backup that was replaced since.
    run.metrics.key_backup_enabled.set(0.0);
    loop {
        let failed = match set_up(run).await {
            Ok(Some(version)) => {
                info!(version, "room keys are uploaded to the key backup");
                run.metrics.key_backup_enabled.set(1.0);
                upload(run, &mut delays).await
            }
            Ok(None) => return Ok(()),
            Err(error) => error,
        };
        run.metrics.key_backup_enabled.set(0.0);
        match failed {
            Failure::Run(error) => return Err(error),
            Failure::Backup(error) => {
                warn!("the key backup cannot be used: {error}");
                sleep(delays.next(error.retry_after())).await;
            }
        }
    }
}

enum Failure {
    Run(BridgeError),
    /// Tried again.
    Backup(HomeserverError),
}

impl<E: Into<BridgeError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Run(error.into())
    }
}

fn failed(error: HomeserverError) -> Failure {
    if error.ends_run() { Failure::Run(error.into()) } else { Failure::Backup(error) }
}

/// Create the backup, or join the homeserver's. Returns its version; `None`, which is logged, if the
/// homeserver's has another key.
async fn set_up(run: &Run) -> Result<Option<String>, Failure> {
    let current = match run.homeserver.send(get_latest_backup_info::v3::Request::new()).await {
        Ok(current) => Some(current),
        Err(error) if error.code() == "M_NOT_FOUND" => None,
        Err(error) => return Err(failed(error)),
    };
    let stored = run.crypto.machine().await?.backup_machine().get_backup_keys().await?;
    let key = match choose_key(run, current.as_ref(), stored.decryption_key).await? {
        Choice::Key(key) => key,
        Choice::NotInStorage => {
            warn!(
                "BRIDGE_RECOVERY_KEY opens the secret storage of the bot's user, and that does not have \
                 the key of a backup: set one up in the client that shows this recovery key; room keys \
                 are not backed up"
            );
            return switch_off(run).await;
        }
    };
    let (version, key) = match (current, key) {
        (Some(BackupVersion { version, info }), Some(key)) if key.backup_key_matches(&info) => {
            (version, key)
        }
        (Some(BackupVersion { version, .. }), _) => {
            warn!(
                version,
                "the bot's user has a key backup with another key: set BRIDGE_RECOVERY_KEY to its key, \
                 or delete that backup; room keys are not backed up"
            );
            return switch_off(run).await;
        }
        (None, key) => create(run, key).await?,
    };
    let machine = run.crypto.machine().await?;
    let backup = machine.backup_machine();
    if stored.backup_version.is_some_and(|stored| stored != version) {
        // The new version has no keys yet.
        backup.disable_backup().await?;
    }
    let public = key.megolm_v1_public_key();
    public.set_version(version.clone());
    backup.save_decryption_key(Some(key), Some(version.clone())).await?;
    backup.enable_backup_v1(public).await?;
    Ok(Some(version))
}

/// The stored backup was replaced, or its key must not be used: no key is fetched from it any more.
async fn switch_off(run: &Run) -> Result<Option<String>, Failure> {
    run.crypto.machine().await?.backup_machine().disable_backup().await?;
    Ok(None)
}

enum Choice {
    /// `None`: a new one.
    Key(Option<BackupDecryptionKey>),
    /// The given key opens the secret storage, which has no key of a backup.
    NotInStorage,
}

/// The given key, the one in the secret storage that it opens, or the stored one.
async fn choose_key(
    run: &Run,
    current: Option<&BackupVersion>,
    stored: Option<BackupDecryptionKey>,
) -> Result<Choice, Failure> {
    let given = run.config.recovery_key.as_ref().and_then(|key| parse(key.expose_secret()));
    let Some(given) = given else { return Ok(Choice::Key(stored)) };
    if current.is_some_and(|current| given.backup_key_matches(&current.info)) {
        return Ok(Choice::Key(Some(given)));
    }
    let Some(storage) = SecretStorage::open(run).await.map_err(failed)? else {
        return Ok(Choice::Key(Some(given)));
    };
    let secret = storage.secret(SecretName::RecoveryKey).await.map_err(failed)?;
    let key = secret.and_then(|key| BackupDecryptionKey::from_base64(key.expose_secret()).ok());
    Ok(match key {
        Some(key) => Choice::Key(Some(key)),
        None => Choice::NotInStorage,
    })
}

/// The key of its base58 form.
pub fn parse(key: &str) -> Option<BackupDecryptionKey> {
    BackupDecryptionKey::from_base58(key).ok()
}

/// Create a backup on the homeserver. A new key is shown and stored before it is used.
async fn create(
    run: &Run,
    key: Option<BackupDecryptionKey>,
) -> Result<(String, BackupDecryptionKey), Failure> {
    let machine = run.crypto.machine().await?;
    let key = match key {
        Some(key) => key,
        None => {
            let key = BackupDecryptionKey::new();
            let shown = SecretString::from(key.to_base58());
            // Shown first: a key that was never shown must not be in use.
            show(&shown)?;
            let copy = parse(shown.expose_secret());
            machine.backup_machine().save_decryption_key(copy, None).await?;
            key
        }
    };
    let mut info = key.to_backup_info();
    if let Err(error) = machine.backup_machine().sign_backup(&mut info).await {
        warn!("the key backup cannot be signed: {error}");
    }
    drop(machine);
    let info = to_raw_value(&info).map_err(|error| {
        Failure::Run(BridgeError::Temporary(format!("a key backup cannot be serialised: {error}")))
    })?;
    let request = create_backup_version::v3::Request::new(Raw::from_json(info));
    let created = run.homeserver.send(request).await.map_err(failed)?;
    info!(version = created.0, "created a key backup");
    Ok((created.0, key))
}

/// Not a log line: logs are kept, and go to stderr.
fn show(key: &SecretString) -> Result<(), BridgeError> {
    let key = key.expose_secret();
    let mut out = std::io::stdout();
    writeln!(out, "The recovery key of the bot's key backup, shown only now: {key}")
        .and_then(|()| out.flush())
        .map_err(|error| {
            let message = format!("the recovery key cannot be printed: {error}");
            BridgeError::fatal(exit_code::UNEXPECTED, message)
        })
}

/// Upload room keys in batches, until that fails.
async fn upload(run: &Run, delays: &mut Delays) -> Failure {
    loop {
        match upload_batch(run).await {
            Ok(true) => *delays = Delays::up_to(MAX_DELAY),
            Ok(false) => run.wake.room_keys.notified().await,
            Err(failure) => return failure,
        }
    }
}

/// Returns `false` if there is nothing to upload.
async fn upload_batch(run: &Run) -> Result<bool, Failure> {
    let batch = run.crypto.machine().await?.backup_machine().backup().await?;
    let Some((id, batch)) = batch else { return Ok(false) };
    let rooms = batch.rooms.len();
    let request = add_backup_keys::v3::Request::new(batch.version, batch.rooms);
    let response = run.homeserver.send(request).await.map_err(failed)?;
    run.crypto.mark_as_sent(&id, &response).await?;
    debug!(rooms, "room keys were backed up");
    Ok(true)
}

/// Fetch a room key and import it. Returns whether that is better than what was stored: the key was
/// missing, or began at a later message.
pub async fn fetch(run: &Run, room_id: &str, session_id: &str) -> Result<bool, BridgeError> {
    let keys = {
        let machine = run.crypto.machine().await?;
        // The machine enables a stored backup by itself, also after the setting was switched off.
        if !run.config.key_backup || !machine.backup_machine().enabled().await {
            return Ok(false);
        }
        machine.backup_machine().get_backup_keys().await?
    };
    let (Some(key), Some(version), Ok(room)) =
        (keys.decryption_key, keys.backup_version, RoomId::parse(room_id))
    else {
        return Ok(false);
    };
    let request = get_backup_keys_for_session::v3::Request::new(
        version.clone(),
        room.clone(),
        session_id.to_owned(),
    );
    let data = match run.homeserver.send(request).await {
        Ok(response) => response.0.deserialize(),
        Err(error) if error.ends_run() => return Err(error.into()),
        Err(error) if error.code() == "M_NOT_FOUND" => return Ok(false),
        Err(error) => {
            warn!(room_id, session_id, "a room key cannot be fetched from the key backup: {error}");
            return Ok(false);
        }
    };
    let decrypted = data.ok().and_then(|data| key.decrypt_session_data(data.session_data).ok());
    let Some(decrypted) = decrypted else {
        warn!(room_id, session_id, "a room key in the key backup cannot be read");
        return Ok(false);
    };
    let exported = ExportedRoomKey::from_backed_up_room_key(room, session_id.to_owned(), decrypted);
    let machine = run.crypto.machine().await?;
    let imported =
        machine.store().import_room_keys(vec![exported], Some(&version), |_, _| {}).await?;
    Ok(imported.imported_count > 0)
}
