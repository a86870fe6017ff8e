//! The settings of a webhook.

use std::{path::Path, time::Duration};

use secrecy::SecretString;

use super::{
    Args,
    values::{http_url, invalid, number, required, secret},
};
use crate::{errors::BridgeError, http_client::Target, webhook::Template};

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
    /// Renders the document, instead of the message's own JSON.
    pub template: Option<Template>,
}

/// The webhook of rooms whose label has none.
pub fn default(args: &Args) -> Result<WebhookConfig, BridgeError> {
    let url = secret(&args.webhook_url, &args.webhook_url_file, "WEBHOOK_URL")?;
    let url = required(url, "WEBHOOK_URL", "https://example.org/hook")?;
    let token = secret(&args.webhook_token, &args.webhook_token_file, "WEBHOOK_TOKEN")?;
    let key = secret(&args.webhook_secret, &args.webhook_secret_file, "WEBHOOK_SECRET")?;
    let template = template(args.webhook_template_file.as_deref(), "WEBHOOK_TEMPLATE_FILE")?;
    Ok(WebhookConfig {
        template,
        target: http_url(&url, "WEBHOOK_URL")?,
        token: token.map(Into::into),
        secret: key.map(Into::into),
        timeout: Duration::from_secs(number(&args.webhook_timeout, "WEBHOOK_TIMEOUT", 30)?),
    })
}

pub fn template(file: Option<&Path>, name: &str) -> Result<Option<Template>, BridgeError> {
    let Some(file) = file.filter(|file| !file.as_os_str().is_empty()) else { return Ok(None) };
    let unusable =
        |reason: String| invalid(format!("{name} {} cannot be used: {reason}", file.display()));
    let source = std::fs::read_to_string(file).map_err(|error| unusable(error.to_string()))?;
    Template::compile(source).map(Some).map_err(|error| unusable(error.to_string()))
}
