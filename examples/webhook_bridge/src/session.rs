//! The bridge's session on the homeserver: device, access token, login.

use ruma::{
    DeviceId, OwnedDeviceId,
    api::client::{
        account::whoami,
        keys::get_keys,
        session::login::v3::{LoginInfo, Password, Request as LoginRequest},
        uiaa::{MatrixUserIdentifier, UserIdentifier},
    },
};
use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    config::{Config, Credentials},
    errors::{BridgeError, exit_code},
    homeserver::Homeserver,
    keys::Keys,
    refusal::{HomeserverError, SessionLoss},
    responses::Tokens,
    tokens,
};

const DEVICE_ID: &str = "device_id";

/// Logs in, or resumes the stored session.
pub struct Session<'a> {
    pub config: &'a Config,
    pub homeserver: &'a Homeserver,
    pub keys: &'a Keys,
    pub stop: &'a CancellationToken,
}

impl Session<'_> {
    /// Return the device, and set its token on `homeserver`. After a restart, this only reads the
    /// store.
    pub async fn resume_or_log_in(&self) -> Result<OwnedDeviceId, BridgeError> {
        let token = tokens::access_token(self.keys).await?;
        let device = match (&self.config.credentials, token, self.stored_device().await?) {
            (Some(Credentials::AccessToken(given)), _, device)
                if !tokens::began_with(self.keys, given.expose_secret()).await? =>
            {
                self.adopt_token(given, device).await?
            }
            (_, Some(token), Some(device)) => {
                self.homeserver.use_token(token.into());
                tokens::refresh_if_due(self.keys, self.homeserver, self.stop).await?;
                device
            }
            (Some(Credentials::AccessToken(given)), _, device) => {
                self.adopt_token(given, device).await?
            }
            (Some(Credentials::Password(password)), _, device) => {
                let device = self.choose_device(device).await?;
                self.log_in(password, &device).await?;
                device
            }
            (None, ..) => {
                return Err(BridgeError::fatal(
                    exit_code::CONFIGURATION,
                    "there is no session yet: set MATRIX_PASSWORD or MATRIX_ACCESS_TOKEN",
                ));
            }
        };
        if let Some(wanted) = &self.config.device_id
            && *wanted != device
        {
            return Err(BridgeError::fatal(
                exit_code::CONFIGURATION,
                format!(
                    "MATRIX_DEVICE_ID is {wanted}, but the stored keys are those of device \
                     {device}: remove MATRIX_DEVICE_ID, or set STORE_ACCOUNT to another name to \
                     start with a new device"
                ),
            ));
        }
        self.refuse_foreign_device(&device).await?;
        Ok(device)
    }

    /// After the token has expired (soft logout), get a new one with the refresh token, or by logging in to
    /// the same device again. Returns `false` if there is neither that nor a password.
    pub async fn renew(&self) -> Result<bool, BridgeError> {
        if tokens::refresh(self.keys, self.homeserver, self.stop).await? {
            return Ok(true);
        }
        match (&self.config.password, self.stored_device().await?) {
            (Some(password), Some(device)) => {
                info!("the access token has expired: logging in to the same device again");
                self.log_in(password, &device).await?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    async fn stored_device(&self) -> Result<Option<OwnedDeviceId>, BridgeError> {
        Ok(self.keys.value(DEVICE_ID).await?.map(OwnedDeviceId::from))
    }

    /// The id is stored before the login, so that a crash in between leaves no orphaned device.
    async fn choose_device(
        &self,
        stored: Option<OwnedDeviceId>,
    ) -> Result<OwnedDeviceId, BridgeError> {
        if let Some(device) = stored {
            return Ok(device);
        }
        let device = self.config.device_id.clone().unwrap_or_else(DeviceId::new);
        self.keys.set_value(DEVICE_ID, device.as_str()).await?;
        Ok(device)
    }

    async fn log_in(&self, password: &SecretString, device: &DeviceId) -> Result<(), BridgeError> {
        let user = MatrixUserIdentifier::from(&self.config.user_id);
        let password =
            Password::new(UserIdentifier::Matrix(user), password.expose_secret().to_owned());
        let mut request = LoginRequest::new(LoginInfo::Password(password));
        request.device_id = Some(device.to_owned());
        request.refresh_token = true;
        request.initial_device_display_name = Some("webhook bridge".to_owned());
        let response =
            self.homeserver.send_until(request, self.stop).await.map_err(refused_login)?;
        if response.user_id != self.config.user_id || response.device_id != device.as_str() {
            return Err(BridgeError::fatal(
                exit_code::LOGIN,
                format!(
                    "the homeserver logged the bot in as {} on device {}: set MATRIX_USER to {0}",
                    response.user_id, response.device_id
                ),
            ));
        }
        // With both, the session began with the token of the settings, which must not be adopted again.
        let given = match &self.config.credentials {
            Some(Credentials::AccessToken(given)) => Some(given.expose_secret()),
            _ => None,
        };
        tokens::begin(self.keys, self.homeserver, response.tokens, given).await?;
        info!(%device, "logged in");
        Ok(())
    }

    /// Use a token from the settings: it must belong to the bot's user and to the stored device, if any.
    async fn adopt_token(
        &self,
        token: &SecretString,
        stored: Option<OwnedDeviceId>,
    ) -> Result<OwnedDeviceId, BridgeError> {
        self.homeserver.use_token(token.clone());
        let refused = |message: String| BridgeError::fatal(exit_code::LOGIN, message);
        let owner = self.homeserver.send_until(whoami::v3::Request::new(), self.stop).await;
        let owner = owner.map_err(refused_login)?;
        if owner.user_id != self.config.user_id {
            return Err(refused(format!(
                "MATRIX_ACCESS_TOKEN belongs to {}, not to {}: set MATRIX_USER, or another token",
                owner.user_id, self.config.user_id
            )));
        }
        let Some(device) = owner.device_id.map(OwnedDeviceId::from) else {
            return Err(refused(
                "MATRIX_ACCESS_TOKEN belongs to no device, so no message can be encrypted for it: \
                 use a token from a login"
                    .to_owned(),
            ));
        };
        if let Some(stored) = stored
            && stored != device
        {
            return Err(refused(format!(
                "MATRIX_ACCESS_TOKEN belongs to device {device}, but the stored keys are those of \
                 device {stored}: use a token of that device, or set STORE_ACCOUNT to another name"
            )));
        }
        self.keys.set_value(DEVICE_ID, device.as_str()).await?;
        let tokens = Tokens {
            access_token: token.expose_secret().to_owned(),
            refresh_token: self
                .config
                .refresh_token
                .as_ref()
                .map(|token| token.expose_secret().to_owned()),
            expires_in: None,
        };
        tokens::begin(self.keys, self.homeserver, tokens, Some(token.expose_secret())).await?;
        Ok(device)
    }

    /// Refuse a device whose published keys are not in the store: it belongs to another program, or its
    /// database was lost. Other clients would reject new keys for it.
    async fn refuse_foreign_device(&self, device: &DeviceId) -> Result<(), BridgeError> {
        if self.keys.has_account().await? {
            return Ok(());
        }
        let mut request = get_keys::v3::Request::new();
        request.device_keys.insert(self.config.user_id.clone(), vec![device.to_owned()]);
        let response = self.homeserver.send_until(request, self.stop).await?;
        let devices = response.0.device_keys.get(&self.config.user_id);
        if devices.is_some_and(|devices| devices.contains_key(device)) {
            // The next start may then choose another device.
            self.keys.remove_value(DEVICE_ID).await?;
            tokens::forget(self.keys).await?;
            return Err(BridgeError::fatal(
                exit_code::SESSION_ENDED,
                format!(
                    "device {device} has encryption keys already, and they are not in this \
                     database: restore the database that has them, or start with a new device (set \
                     MATRIX_PASSWORD without MATRIX_DEVICE_ID, or a token of another login)"
                ),
            ));
        }
        Ok(())
    }
}

/// The error for a refused login or token, with the setting to check.
fn refused_login(error: HomeserverError) -> BridgeError {
    if matches!(error, HomeserverError::Stopped) {
        return BridgeError::Stopped;
    }
    if error.session_loss() == Some(SessionLoss::Locked) {
        return error.into();
    }
    let message = match error.code() {
        "M_FORBIDDEN" | "M_UNAUTHORIZED" => {
            "the homeserver refused user or password: check MATRIX_USER and MATRIX_PASSWORD".into()
        }
        "M_UNKNOWN_TOKEN" | "M_MISSING_TOKEN" => {
            "the homeserver refused the token: check MATRIX_ACCESS_TOKEN".into()
        }
        "M_USER_DEACTIVATED" => "the bot's account is deactivated".into(),
        "M_UNKNOWN" | "M_UNRECOGNIZED" => {
            format!(
                "{error}: the homeserver may not allow password logins; set MATRIX_ACCESS_TOKEN \
                 instead"
            )
        }
        _ => format!("the login failed: {error}"),
    };
    BridgeError::fatal(exit_code::LOGIN, message)
}

/// The explanation of a refused access token, and what to do.
pub fn explain(loss: SessionLoss) -> &'static str {
    match loss {
        SessionLoss::Expired => {
            "the access token has expired, and there is no refresh token that the homeserver \
             accepts: set MATRIX_PASSWORD, or MATRIX_ACCESS_TOKEN to a new token of the same device"
        }
        SessionLoss::Locked => {
            "the homeserver reports that the bot's account is locked: ask its administrator to \
             unlock it; device and keys are kept"
        }
        SessionLoss::Unknown => {
            "the homeserver does not know the access token. If the account is locked, which some \
             homeservers report as this error, have it unlocked. If the device was logged out, it \
             was deleted, and its keys cannot be used any more: set STORE_ACCOUNT to another name, \
             with MATRIX_PASSWORD or a new MATRIX_ACCESS_TOKEN, to start with a new device"
        }
    }
}
