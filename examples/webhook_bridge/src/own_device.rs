//! Checks at start that the homeserver has the keys of this device, and signs it.

use matrix_sdk_postgres::admin::{self, CheckStatus, OwnDevice};
use ruma::api::client::keys::get_keys::v3::Request;
use tracing::{error, warn};

use crate::{
    config::CrossSigning,
    cross_signing,
    errors::{BridgeError, exit_code},
    run::Run,
};

/// Check the device and sign it, then wait for the stop.
pub async fn run(run: &Run) -> Result<(), BridgeError> {
    run.stop.run_until_cancelled(check_and_sign(run)).await.unwrap_or(Ok(()))?;
    run.stop.cancelled().await;
    Ok(())
}

async fn check_and_sign(run: &Run) -> Result<(), BridgeError> {
    run.wake.device_published.notified().await;
    if let Some(own) = &run.published_device {
        check(run, own).await?;
    }
    match run.config.cross_signing {
        CrossSigning::Off => Ok(()),
        CrossSigning::Create | CrossSigning::Reset => cross_signing::sign_device(run).await,
    }
}

/// Compare the homeserver's keys of a device that was published before this run. If it has others, no
/// message can be encrypted for this store's keys any more.
async fn check(run: &Run, own: &OwnDevice) -> Result<(), BridgeError> {
    const NEW_DEVICE: &str = "start with a new device: set STORE_ACCOUNT to another name, with \
                              MATRIX_PASSWORD and without MATRIX_DEVICE_ID, or with the \
                              MATRIX_ACCESS_TOKEN of a new login";
    let mut request = Request::new();
    request.device_keys.insert(own.user_id.clone(), vec![own.device_id.clone()]);
    let answer = match run.homeserver.send_until(request, &run.stop).await {
        Ok(answer) => answer.0,
        Err(error) if error.ends_run() => return Err(error.into()),
        Err(error) => {
            warn!("the homeserver's keys of this device cannot be checked: {error}");
            return Ok(());
        }
    };
    let listed = answer.device_keys.get(&own.user_id);
    let is_listed = listed.is_some_and(|devices| devices.contains_key(&own.device_id));
    let checks = admin::check_device(own, &answer);
    // The first check is that of the keys.
    match checks.first() {
        Some(keys) if keys.status == CheckStatus::Problem && is_listed => Err(BridgeError::fatal(
            exit_code::SESSION_ENDED,
            format!("{}: {NEW_DEVICE}", keys.found),
        )),
        Some(keys) if keys.status == CheckStatus::Problem => {
            error!("{}, or the homeserver was restored: {NEW_DEVICE}", keys.found);
            Ok(())
        }
        _ => Ok(()),
    }
}
