//! The settings of the HTTP API, and of attachments.

use std::{net::SocketAddr, num::NonZeroU32, time::Duration};

use secrecy::SecretString;

use super::{
    Args,
    values::{address, invalid, non_empty, number, token},
};
use crate::errors::BridgeError;

/// The API is on. `Debug` shows no secret.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    pub listen: SocketAddr,
    pub token: SecretString,
    /// Requests per second, and the size of a burst.
    pub rate: NonZeroU32,
    /// Messages kept of each room.
    pub max_messages: i64,
    pub max_age: Duration,
    /// Bytes of an attachment.
    pub max_attachment: usize,
}

/// What a document says about an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachments {
    /// Name, type and size.
    None,
    /// Its key, too.
    Keys,
    /// The path at which the API serves it.
    Download,
}

pub fn read(args: &Args) -> Result<Option<ApiConfig>, BridgeError> {
    let token = token(&args.api_token, &args.api_token_file, "BRIDGE_API_TOKEN")?;
    let Some(token) = token else {
        let more = [
            ("BRIDGE_API_LISTEN", &args.api_listen),
            ("BRIDGE_API_RATE_LIMIT", &args.api_rate_limit),
            ("BRIDGE_API_MAX_MESSAGES", &args.api_max_messages),
            ("BRIDGE_API_MAX_AGE", &args.api_max_age),
            ("BRIDGE_ATTACHMENT_MAX_BYTES", &args.attachment_max_bytes),
        ];
        let set = more.into_iter().find(|(_, value)| non_empty((*value).clone()).is_some());
        return match set {
            None => Ok(None),
            Some((name, _)) => Err(invalid(format!(
                "{name} is set without BRIDGE_API_TOKEN, which the API requires: set it to a long \
                 random text, or remove {name}"
            ))),
        };
    };
    let listen = non_empty(args.api_listen.clone());
    let listen = listen.unwrap_or_else(|| "127.0.0.1:9091".to_owned());
    let rate: u32 = number(&args.api_rate_limit, "BRIDGE_API_RATE_LIMIT", 10)?;
    let age: u64 = number(&args.api_max_age, "BRIDGE_API_MAX_AGE", 7 * 24 * 60 * 60)?;
    Ok(Some(ApiConfig {
        listen: address(&listen, "BRIDGE_API_LISTEN")?,
        token: token.into(),
        rate: NonZeroU32::new(rate).unwrap_or(NonZeroU32::MIN),
        max_messages: number(&args.api_max_messages, "BRIDGE_API_MAX_MESSAGES", 100)?,
        // At most a time that PostgreSQL can subtract.
        max_age: Duration::from_secs(age.min(100 * 366 * 24 * 60 * 60)),
        max_attachment: number(
            &args.attachment_max_bytes,
            "BRIDGE_ATTACHMENT_MAX_BYTES",
            50 * 1024 * 1024,
        )?,
    }))
}

pub fn attachments(args: &Args, api: bool) -> Result<Attachments, BridgeError> {
    match non_empty(args.attachments.clone()).as_deref() {
        None | Some("none") => Ok(Attachments::None),
        Some("keys") => Ok(Attachments::Keys),
        Some("download") if api => Ok(Attachments::Download),
        Some("download") => Err(invalid(
            "BRIDGE_ATTACHMENTS is download, which needs the API: set BRIDGE_API_TOKEN, too",
        )),
        Some(other) => Err(invalid(format!(
            "BRIDGE_ATTACHMENTS is {other:?}: set it to none, keys or download"
        ))),
    }
}
