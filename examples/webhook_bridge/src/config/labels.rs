//! Reads the labels file: TOML, one `[[label]]` per label.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use ruma::{RoomOrAliasId, ServerName, UserId};
use secrecy::SecretString;
use serde::Deserialize;

use super::{
    WebhookConfig,
    values::{http_url, invalid, secret},
    webhook::template,
};
use crate::{
    errors::BridgeError,
    labels::{Ghosts, LabelRule, Labels},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    label: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    #[serde(default)]
    rooms: Vec<String>,
    #[serde(default)]
    inviters: Vec<String>,
    #[serde(default)]
    ghosts: Vec<String>,
    webhook_url: Option<String>,
    webhook_url_file: Option<PathBuf>,
    webhook_token: Option<String>,
    webhook_token_file: Option<PathBuf>,
    webhook_secret: Option<String>,
    webhook_secret_file: Option<PathBuf>,
    template_file: Option<PathBuf>,
}

/// The labels, and the webhooks of those that have their own. `server` is the bot's.
pub fn read(
    file: Option<&Path>,
    server: &ServerName,
    default: &WebhookConfig,
) -> Result<(Labels, HashMap<String, WebhookConfig>), BridgeError> {
    let Some(file) = file.filter(|file| !file.as_os_str().is_empty()) else {
        return Ok(Default::default());
    };
    let unusable = |reason: String| {
        invalid(format!("BRIDGE_LABELS_FILE {} cannot be used: {reason}", file.display()))
    };
    let text = std::fs::read_to_string(file).map_err(|error| unusable(error.to_string()))?;
    let parsed: File =
        toml::from_str(&text).map_err(|error| unusable(without_values(&text, &error)))?;
    let (mut labels, mut webhooks) = (Labels::default(), HashMap::new());
    for entry in parsed.label {
        let name = entry.name.clone();
        let explain = |error: String| unusable(format!("label {name:?}: {error}"));
        let rule = rule(&entry, server).map_err(explain)?;
        if labels.0.iter().any(|known| known.name == rule.name) {
            return Err(explain("it is there twice".to_owned()));
        }
        if let Some(webhook) =
            webhook(entry, default).map_err(|error| explain(error.to_string()))?
        {
            webhooks.insert(rule.name.clone(), webhook);
        }
        labels.0.push(rule);
    }
    Ok((labels, webhooks))
}

/// The error with its line, but without values, which may be secrets.
fn without_values(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
    let message = error.message();
    let message = if message.starts_with("invalid") {
        "a value is malformed or of a wrong type"
    } else {
        message
    };
    format!("line {line}: {message}")
}

fn rule(entry: &Entry, server: &ServerName) -> Result<LabelRule, String> {
    let allowed = |one: char| one.is_ascii_alphanumeric() || matches!(one, '_' | '-' | '.');
    if entry.name.is_empty() || entry.name.len() > 64 || !entry.name.chars().all(allowed) {
        return Err("a name has 1 to 64 letters, digits, '_', '-' or '.'".to_owned());
    }
    if matches!(&*entry.name, "." | "..") {
        return Err("no URL of the API can have this name".to_owned());
    }
    for room in &entry.rooms {
        match <&RoomOrAliasId>::try_from(room.as_str()) {
            Ok(id) if id.is_room_id() => {}
            _ => return Err(format!("{room:?} is not a room id, which begins with '!'")),
        }
    }
    for user in &entry.inviters {
        UserId::parse(user).map_err(|error| format!("{user:?} is not a user id: {error}"))?;
    }
    if entry.rooms.is_empty() && entry.inviters.is_empty() && entry.ghosts.is_empty() {
        return Err("it has no rooms, inviters or ghosts, so no room gets it".to_owned());
    }
    let ghosts = entry.ghosts.iter().map(|pattern| Ghosts::parse(pattern, server));
    let ghosts = ghosts.collect::<Result<_, _>>()?;
    let (rooms, inviters) = (entry.rooms.clone(), entry.inviters.clone());
    Ok(LabelRule { name: entry.name.clone(), rooms, inviters, ghosts })
}

/// The webhook of a label, if it has its own. It inherits the time limit only: the default webhook's
/// token is not for another receiver, nor is its template.
fn webhook(entry: Entry, default: &WebhookConfig) -> Result<Option<WebhookConfig>, BridgeError> {
    let read = |value: Option<String>, file: Option<PathBuf>, name: &str| match value {
        Some(value) if value.is_empty() => Err(invalid(format!("{name} is empty: remove it"))),
        value => secret(&value.map(SecretString::from), &file, name),
    };
    let url = read(entry.webhook_url, entry.webhook_url_file, "webhook_url")?;
    let token = read(entry.webhook_token, entry.webhook_token_file, "webhook_token")?;
    let key = read(entry.webhook_secret, entry.webhook_secret_file, "webhook_secret")?;
    let Some(url) = url else {
        if token.is_some() || key.is_some() || entry.template_file.is_some() {
            return Err(invalid(
                "webhook_token, webhook_secret and template_file need a webhook_url",
            ));
        }
        return Ok(None);
    };
    Ok(Some(WebhookConfig {
        target: http_url(&url, "webhook_url")?,
        token: token.map(Into::into),
        secret: key.map(Into::into),
        timeout: default.timeout,
        template: template(entry.template_file.as_deref(), "template_file")?,
    }))
}
