//! The driver's settings that are the same for every host.

use std::time::Duration;

use tokio_postgres::config::{ChannelBinding, Config, SslNegotiation, TargetSessionAttrs};

use super::parameters::Parameters;

/// How long sent data may stay unacknowledged before the connection is closed.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);
/// An idle connection is probed after 30 s, and closed 30 s later.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

/// The `application_name` of a connection string without one.
pub(crate) const APPLICATION_NAME: &str = "matrix-sdk-postgres";

/// Operating systems accept no more: with a larger value no connection could be made.
const MAX_KEEPALIVE_SECONDS: u32 = 32_767;
const MAX_KEEPALIVE_RETRIES: u32 = 127;
const MAX_TCP_MILLISECONDS: u32 = i32::MAX.unsigned_abs();

pub(super) fn template(
    parameters: &Parameters,
    servers: usize,
    direct: bool,
) -> Result<Config, String> {
    let mut config = Config::new();
    let name = parameters.get("application_name").or(parameters.get("fallback_application_name"));
    config.application_name(name.unwrap_or(APPLICATION_NAME));
    if direct {
        config.ssl_negotiation(SslNegotiation::Direct);
    }
    let binding =
        parameters.parse("channel_binding", "disable, prefer or require", |value| match value {
            "disable" => Some(ChannelBinding::Disable),
            "prefer" => Some(ChannelBinding::Prefer),
            "require" => Some(ChannelBinding::Require),
            _ => None,
        })?;
    config.channel_binding(binding.unwrap_or(ChannelBinding::Prefer));
    let session = parameters.parse(
        "target_session_attrs",
        "any, read-write or primary: the store writes",
        |value| match value {
            "any" => Some(TargetSessionAttrs::Any),
            "read-write" | "primary" => Some(TargetSessionAttrs::ReadWrite),
            _ => None,
        },
    )?;
    // The store writes, so standbys among several hosts are skipped.
    let default = if servers > 1 { TargetSessionAttrs::ReadWrite } else { TargetSessionAttrs::Any };
    config.target_session_attrs(session.unwrap_or(default));
    keepalives(parameters, &mut config)?;
    Ok(config)
}

fn keepalives(parameters: &Parameters, config: &mut Config) -> Result<(), String> {
    let number = |parameter: &str, max: u32, expected: &str| {
        let expected = format!("{expected} from 0 to {max}");
        parameters
            .parse(parameter, &expected, |value| value.parse().ok().filter(|number| *number <= max))
    };
    let seconds = |parameter: &str, default: Duration| {
        Ok::<_, String>(
            match number(parameter, MAX_KEEPALIVE_SECONDS, "a whole number of seconds")? {
                None | Some(0) => default,
                Some(seconds) => Duration::from_secs(seconds.into()),
            },
        )
    };
    config.keepalives(number("keepalives", 1, "a number")? != Some(0));
    config.keepalives_idle(seconds("keepalives_idle", KEEPALIVE_IDLE)?);
    config.keepalives_interval(seconds("keepalives_interval", KEEPALIVE_INTERVAL)?);
    // libpq's name, then tokio-postgres's.
    let count = |parameter| number(parameter, MAX_KEEPALIVE_RETRIES, "a whole number");
    let retries = count("keepalives_count")?.or(count("keepalives_retries")?);
    config.keepalives_retries(retries.filter(|count| *count > 0).unwrap_or(KEEPALIVE_RETRIES));
    match number("tcp_user_timeout", MAX_TCP_MILLISECONDS, "a whole number of milliseconds")? {
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
