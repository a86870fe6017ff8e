//! The session's tokens in the store, and new ones before they expire.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ruma::api::client::session::refresh_token::v3::Request;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    errors::BridgeError, homeserver::Homeserver, keys::Keys, refusal::HomeserverError,
    responses::Tokens,
};

const ACCESS_TOKEN: &str = "access_token";
const REFRESH_TOKEN: &str = "refresh_token";
/// When to exchange them, in seconds since 1970.
const REFRESH_AT: &str = "refresh_at";
/// The access token of the settings that the session began with: the current one may be newer.
const GIVEN_TOKEN: &str = "given_token";
/// Tokens are exchanged this long before they expire, or in the last quarter of a shorter lifetime.
const MARGIN: Duration = Duration::from_secs(60);

/// The stored access token.
pub async fn access_token(keys: &Keys) -> Result<Option<String>, BridgeError> {
    keys.value(ACCESS_TOKEN).await
}

/// Whether the stored session began with this token of the settings.
pub async fn began_with(keys: &Keys, given: &str) -> Result<bool, BridgeError> {
    let began_with = keys.value(GIVEN_TOKEN).await?;
    // Earlier versions stored the access token only.
    let began_with = if began_with.is_some() { began_with } else { access_token(keys).await? };
    Ok(began_with.as_deref() == Some(given))
}

/// Store a session's tokens in one transaction, then use them. `given` is the access token if it comes
/// from the settings. The former refresh token stays valid if there is no new one.
pub async fn begin(
    keys: &Keys,
    homeserver: &Homeserver,
    tokens: Tokens,
    given: Option<&str>,
) -> Result<(), BridgeError> {
    let store = async {
        keys.remove_value(REFRESH_TOKEN).await?;
        match given {
            Some(given) => keys.set_value(GIVEN_TOKEN, given).await?,
            None => keys.remove_value(GIVEN_TOKEN).await?,
        }
        save(keys, &tokens).await
    };
    keys.atomically(store).await?;
    homeserver.use_token(tokens.access_token.into());
    Ok(())
}

async fn save(keys: &Keys, tokens: &Tokens) -> Result<(), BridgeError> {
    keys.set_value(ACCESS_TOKEN, &tokens.access_token).await?;
    if let Some(token) = &tokens.refresh_token {
        keys.set_value(REFRESH_TOKEN, token).await?;
    }
    match tokens.expires_in {
        Some(lifetime) => {
            let at = now() + lifetime - MARGIN.min(lifetime / 4);
            keys.set_value(REFRESH_AT, &at.as_secs().to_string()).await
        }
        None => keys.remove_value(REFRESH_AT).await,
    }
}

pub async fn forget(keys: &Keys) -> Result<(), BridgeError> {
    for name in [ACCESS_TOKEN, REFRESH_TOKEN, REFRESH_AT, GIVEN_TOKEN] {
        keys.remove_value(name).await?;
    }
    Ok(())
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The time until the tokens are to be exchanged; `None` if they do not expire.
async fn until_refresh(keys: &Keys) -> Result<Option<Duration>, BridgeError> {
    let at = keys.value(REFRESH_AT).await?.and_then(|at| at.parse().ok());
    let has_token = keys.value(REFRESH_TOKEN).await?.is_some();
    Ok(at.filter(|_| has_token).map(|at| Duration::from_secs(at).saturating_sub(now())))
}

/// Exchange the tokens if they are about to expire, or have expired while the bridge was down.
pub async fn refresh_if_due(
    keys: &Keys,
    homeserver: &Homeserver,
    stop: &CancellationToken,
) -> Result<(), BridgeError> {
    if until_refresh(keys).await? == Some(Duration::ZERO) {
        refresh(keys, homeserver, stop).await?;
    }
    Ok(())
}

/// Exchange the tokens before they expire, until stopped.
pub async fn keep_fresh(
    keys: &Keys,
    homeserver: &Homeserver,
    stop: &CancellationToken,
) -> Result<(), BridgeError> {
    while let Some(wait) = until_refresh(keys).await? {
        // Short enough for a clock that is set, or a machine that was suspended.
        let wait = wait.clamp(Duration::from_secs(1), Duration::from_secs(60));
        if stop.run_until_cancelled(sleep(wait)).await.is_none() {
            return Ok(());
        }
        refresh_if_due(keys, homeserver, stop).await?;
    }
    stop.cancelled().await;
    Ok(())
}

/// Exchange the tokens for new ones. Returns `false` if there is no refresh token, or if it is refused.
pub async fn refresh(
    keys: &Keys,
    homeserver: &Homeserver,
    stop: &CancellationToken,
) -> Result<bool, BridgeError> {
    let Some(token) = keys.value(REFRESH_TOKEN).await? else { return Ok(false) };
    match homeserver.send_until(Request::new(token), stop).await {
        Ok(tokens) => {
            // Stored first: the former tokens are valid until the new ones are used.
            keys.atomically(save(keys, &tokens)).await?;
            homeserver.use_token(tokens.access_token.into());
            info!("the access token was refreshed");
            Ok(true)
        }
        Err(HomeserverError::Stopped) => Err(BridgeError::Stopped),
        Err(error) if error.code() == "M_USER_LOCKED" => Err(error.into()),
        Err(error) => {
            warn!("the homeserver refuses the refresh token: {error}");
            // Other answers may come from something else than the homeserver.
            if matches!(error.code(), "M_UNKNOWN_TOKEN" | "M_FORBIDDEN") {
                keys.remove_value(REFRESH_TOKEN).await?;
            }
            Ok(false)
        }
    }
}
