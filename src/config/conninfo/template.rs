//! What every connection has in common, whichever server it goes to.

use std::time::Duration;

use tokio_postgres::config::{ChannelBinding, Config, SslNegotiation, TargetSessionAttrs};

use super::words::Words;

/// How long a dead peer may go unnoticed while data is on its way.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);
/// An idle connection is probed after 30 s, and given up 30 s later.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

/// What the server shows of a connection that was given no name.
pub(crate) const APPLICATION_NAME: &str = "matrix-sdk-postgres";

/// What operating systems accept; with more, no connection could be made.
const MOST_KEEPALIVE_SECONDS: u32 = 32_767;
const MOST_KEEPALIVE_RETRIES: u32 = 127;
const MOST_TCP_MILLISECONDS: u32 = i32::MAX.unsigned_abs();

pub(super) fn template(words: &Words, servers: usize, direct: bool) -> Result<Config, String> {
    let mut config = Config::new();
    let name = words.get("application_name").or(words.get("fallback_application_name"));
    config.application_name(name.unwrap_or(APPLICATION_NAME));
    if direct {
        config.ssl_negotiation(SslNegotiation::Direct);
    }
    let binding =
        words.parse("channel_binding", "disable, prefer or require", |value| match value {
            "disable" => Some(ChannelBinding::Disable),
            "prefer" => Some(ChannelBinding::Prefer),
            "require" => Some(ChannelBinding::Require),
            _ => None,
        })?;
    config.channel_binding(binding.unwrap_or(ChannelBinding::Prefer));
    let session = words.parse(
        "target_session_attrs",
        "any, read-write or primary: the store writes",
        |value| match value {
            "any" => Some(TargetSessionAttrs::Any),
            "read-write" | "primary" => Some(TargetSessionAttrs::ReadWrite),
            _ => None,
        },
    )?;
    // Of several servers, a standby is of no use to a store.
    let several = if servers > 1 { TargetSessionAttrs::ReadWrite } else { TargetSessionAttrs::Any };
    config.target_session_attrs(session.unwrap_or(several));
    keepalives(words, &mut config)?;
    Ok(config)
}

fn keepalives(words: &Words, config: &mut Config) -> Result<(), String> {
    let number = |word: &str, most: u32, expected: &str| {
        let expected = format!("{expected} from 0 to {most}");
        words.parse(word, &expected, |value| value.parse().ok().filter(|number| *number <= most))
    };
    let seconds = |word: &str, default: Duration| {
        Ok::<_, String>(match number(word, MOST_KEEPALIVE_SECONDS, "a whole number of seconds")? {
            None | Some(0) => default,
            Some(seconds) => Duration::from_secs(seconds.into()),
        })
    };
    config.keepalives(number("keepalives", 1, "a number")? != Some(0));
    config.keepalives_idle(seconds("keepalives_idle", KEEPALIVE_IDLE)?);
    config.keepalives_interval(seconds("keepalives_interval", KEEPALIVE_INTERVAL)?);
    // libpq's name, and tokio-postgres's.
    let count = |word| number(word, MOST_KEEPALIVE_RETRIES, "a whole number");
    let retries = count("keepalives_count")?.or(count("keepalives_retries")?);
    config.keepalives_retries(retries.filter(|count| *count > 0).unwrap_or(KEEPALIVE_RETRIES));
    match number("tcp_user_timeout", MOST_TCP_MILLISECONDS, "a whole number of milliseconds")? {
        // Zero leaves it to the operating system.
        Some(0) => {}
        Some(milliseconds) => {
            config.tcp_user_timeout(Duration::from_millis(milliseconds.into()));
        }
        None => {
            config.tcp_user_timeout(TCP_USER_TIMEOUT);
        }
    }
    Ok(())
}
