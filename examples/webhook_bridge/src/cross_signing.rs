//! Cross-signing: creates the bot's identity and signs its device with it, so that clients that share
//! keys only with signed devices (MSC4153) share them with the bot.

use std::time::Duration;

use matrix_sdk_crypto::{
    CrossSigningBootstrapRequests, Device,
    types::{
        CrossSigningKey,
        requests::{AnyIncomingResponse, UploadSigningKeysRequest},
    },
};
use ruma::{
    TransactionId,
    api::client::keys::{
        upload_signatures::v3::Request as SignatureUploadRequest, upload_signing_keys::v3::Request,
    },
    serde::Raw,
};
use serde_json::value::to_raw_value;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::{
    config::CrossSigning, errors::BridgeError, interactive_auth::Answer, outgoing,
    refusal::HomeserverError, retry::Delays, run::Run, secret_storage,
};

/// The longest delay between attempts.
const MAX_DELAY: Duration = Duration::from_secs(15 * 60);
/// How often a request that needs approval in a browser is repeated.
const APPROVAL_INTERVAL: Duration = Duration::from_secs(10);
/// Uploads per run, over all identities: the device may still not be signed, or another client replaces
/// the identity, too.
const MAX_UPLOADS: u32 = 3;
/// How often the identity is looked at while there is nothing to do.
const LOOK_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// The state of the bot's identity, according to the last key query.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Identity {
    /// This device is signed by it.
    Signed,
    /// The homeserver has none; the store may have one that was not uploaded.
    Missing,
    /// It is this store's, and has not signed this device.
    Unsigned,
    /// Its private keys are elsewhere.
    Foreign,
}

/// Sign the published device, and again if another client replaces the identity.
pub async fn sign_device(run: &Run) -> Result<(), BridgeError> {
    let mut delays = Delays::up_to(MAX_DELAY);
    let mut tried = Tried::default();
    let mut reported = None;
    loop {
        let Some(published) = outgoing::query_own_devices(run).await? else {
            sleep(delays.next(None)).await;
            continue;
        };
        let found = identity(run, published).await?;
        run.metrics.device_cross_signed.set(u8::from(found == Identity::Signed));
        // Once: if the keys are there, the identity is not foreign any more.
        if found == Identity::Foreign && !std::mem::replace(&mut tried.import, true) {
            secret_storage::import_identity(run).await?;
            continue;
        }
        let may_upload = match found {
            Identity::Signed => false,
            Identity::Missing | Identity::Unsigned => true,
            Identity::Foreign => run.config.cross_signing == CrossSigning::Reset,
        };
        let impossible = tried.impossible == Some(found);
        if !may_upload || impossible || tried.uploads == MAX_UPLOADS {
            if reported.replace(found) != Some(found) && !impossible {
                report(found, may_upload);
            }
            next_look(run).await;
            // Another client may have stored the keys meanwhile.
            tried.import = false;
            continue;
        }
        let uploaded = match found {
            Identity::Unsigned => upload_signature(run).await?,
            _ => upload(run, found == Identity::Foreign).await?,
        };
        match uploaded {
            Upload::Done => {
                tried.uploads += 1;
                // Another worker of the homeserver may still return the former keys.
                sleep(delays.next(None)).await;
            }
            Upload::Later(retry_after) => sleep(delays.next(retry_after)).await,
            Upload::Impossible => {
                tried.impossible = Some(found);
                sleep(delays.next(None)).await;
            }
        }
    }
}

/// What was tried in this run.
#[derive(Default)]
struct Tried {
    uploads: u32,
    /// The state in which an upload was refused.
    impossible: Option<Identity>,
    /// The private keys were looked for in the secret storage, since the last wait.
    import: bool,
}

/// Log a state in which nothing is uploaded; `exhausted`: because that did not help.
fn report(found: Identity, exhausted: bool) {
    match found {
        Identity::Signed => info!("this device is signed by the bot's cross-signing identity"),
        _ if exhausted => warn!(
            "this device is still not signed after {MAX_UPLOADS} uploads: the homeserver does not \
             return the signature that it accepted, or another client replaces the identity"
        ),
        _ => warn!(
            "the bot's user has a cross-signing identity, and its private keys are not in this \
             database: clients that exclude unsigned devices do not send their keys to this device. \
             Verify the device in another client of the bot's user, set BRIDGE_RECOVERY_KEY to the key \
             of its secret storage, or set BRIDGE_CROSS_SIGNING=reset to replace the identity"
        ),
    }
}

/// Wait until the homeserver says that the devices or the identity of the bot's user have changed, which
/// it may omit.
async fn next_look(run: &Run) {
    let _ = timeout(LOOK_INTERVAL, run.wake.own_devices.notified()).await;
}

/// The state after a key query; `published`: whether the homeserver has an identity. The store has ours
/// before the upload, and a foreign one after an answer that lacks it: that one counts as published.
async fn identity(run: &Run, published: bool) -> Result<Identity, BridgeError> {
    let signed = own_device(run).await?.is_some_and(|device| device.is_cross_signed_by_owner());
    let machine = run.crypto.machine().await?;
    let ours = machine.cross_signing_status().await.is_complete();
    let stored = machine.get_identity(machine.user_id(), None).await?.is_some();
    Ok(match (published, ours) {
        (true, _) | (false, false) if signed => Identity::Signed,
        (true, true) => Identity::Unsigned,
        (false, true) => Identity::Missing,
        (false, false) if !stored => Identity::Missing,
        (_, false) => Identity::Foreign,
    })
}

enum Upload {
    Done,
    Later(Option<Duration>),
    /// Logged; not repeated in this state before a restart with other settings.
    Impossible,
}

/// Create the identity unless the store has it, and upload it and this device's signature. The private
/// keys are stored first.
async fn upload(run: &Run, reset: bool) -> Result<Upload, BridgeError> {
    let requests = run.crypto.machine().await?.bootstrap_cross_signing(reset).await?;
    let CrossSigningBootstrapRequests { upload_signing_keys_req, upload_signatures_req, .. } =
        requests;
    let uploaded = upload_identity(run, upload_signing_keys_req).await?;
    if !matches!(uploaded, Upload::Done) {
        return Ok(uploaded);
    }
    send_signatures(run, upload_signatures_req).await
}

/// Sign this device with the published identity. The identity is not uploaded again: keys that come from
/// the secret storage have not the signatures that another client has given them.
async fn upload_signature(run: &Run) -> Result<Upload, BridgeError> {
    let Some(device) = own_device(run).await? else { return Ok(Upload::Later(None)) };
    match device.verify().await {
        Ok(signatures) => send_signatures(run, signatures).await,
        Err(error) => {
            warn!("the bot's device cannot be signed: {error}");
            Ok(Upload::Impossible)
        }
    }
}

async fn own_device(run: &Run) -> Result<Option<Device>, BridgeError> {
    let machine = run.crypto.machine().await?;
    Ok(machine.get_device(machine.user_id(), machine.device_id(), None).await?)
}

async fn send_signatures(
    run: &Run,
    signatures: SignatureUploadRequest,
) -> Result<Upload, BridgeError> {
    match run.homeserver.send(signatures).await {
        Ok(response) => {
            run.crypto.mark_as_sent(&TransactionId::new(), &response).await?;
            Ok(Upload::Done)
        }
        Err(error) => failed(error),
    }
}

async fn upload_identity(run: &Run, keys: UploadSigningKeysRequest) -> Result<Upload, BridgeError> {
    let mut request = Request::new();
    request.master_key = raw(keys.master_key);
    request.self_signing_key = raw(keys.self_signing_key);
    request.user_signing_key = raw(keys.user_signing_key);
    let (mut password_sent, mut shown) = (false, String::new());
    loop {
        // The first upload often needs no authentication (MSC3967).
        let error = match run.homeserver.send(request.clone()).await {
            Ok(response) => {
                let response = AnyIncomingResponse::SigningKeysUpload(&response);
                run.crypto.mark_as_sent(&TransactionId::new(), response).await?;
                return Ok(Upload::Done);
            }
            Err(error) => error,
        };
        let Some(requested) = error.interactive_auth() else { return failed(error) };
        let config = &run.config;
        let password = config.password.as_ref().filter(|_| !password_sent);
        match requested.answer(&config.user_id, password, &config.homeserver.url) {
            Some(Answer::Automatic(auth)) => request.auth = Some(auth),
            Some(Answer::Password(auth)) => {
                request.auth = Some(auth);
                password_sent = true;
            }
            Some(Answer::Browser { page, auth }) => {
                if page != shown {
                    warn!(
                        "the homeserver asks for an approval before the bot's device is signed: \
                         open {page}"
                    );
                    shown = page;
                }
                request.auth = Some(auth);
                sleep(APPROVAL_INTERVAL).await;
            }
            None => {
                let reason = if password_sent {
                    "it refused MATRIX_PASSWORD"
                } else {
                    "it asks for the password: set MATRIX_PASSWORD"
                };
                warn!("the homeserver does not accept the bot's cross-signing identity: {reason}");
                return Ok(Upload::Impossible);
            }
        }
    }
}

fn failed(error: HomeserverError) -> Result<Upload, BridgeError> {
    if error.ends_run() {
        return Err(error.into());
    }
    warn!("the bot's device cannot be signed: {error}");
    Ok(if error.is_temporary() { Upload::Later(error.retry_after()) } else { Upload::Impossible })
}

fn raw<T>(key: Option<CrossSigningKey>) -> Option<Raw<T>> {
    to_raw_value(&key?).ok().map(Raw::from_json)
}
