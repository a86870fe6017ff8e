//! The settings of a webhook.

use std::time::Duration;

use secrecy::SecretString;

use super::{
    Args,
    values::{http_url, number, required, secret},
};
use crate::{errors::BridgeError, http_client::Target};

/// One webhook. `Debug` shows no secret.
#[derive(Clone, Debug)]
pub struct WebhookConfig {
    pub target: Target,
    /// Sent as a bearer token.
    pub token: Option<SecretString>,
    /// Deliveries are signed with it.
    pub secret: Option<SecretString>,
    /// Time limit of one request.
    pub timeout: Duration,
}

/// The webhook of rooms whose label has none.
pub fn default(args: &Args) -> Result<WebhookConfig, BridgeError> {
    let url = secret(&args.webhook_url, &args.webhook_url_file, "WEBHOOK_URL")?;
    let url = required(url, "WEBHOOK_URL", "https://example.org/hook")?;
    let token = secret(&args.webhook_token, &args.webhook_token_file, "WEBHOOK_TOKEN")?;
    let key = secret(&args.webhook_secret, &args.webhook_secret_file, "WEBHOOK_SECRET")?;
    Ok(WebhookConfig {
        target: http_url(&url, "WEBHOOK_URL")?,
        token: token.map(Into::into),
        secret: key.map(Into::into),
        timeout: Duration::from_secs(number(&args.webhook_timeout, "WEBHOOK_TIMEOUT", 30)?),
    })
}
