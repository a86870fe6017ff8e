//! A bot that receives end-to-end encrypted Matrix messages, decrypts them with keys kept only in
//! PostgreSQL, and forwards them to a webhook. See the README.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod allow_list;
mod backup;
mod changes;
mod checkpoint;
mod config;
mod cross_signing;
mod crypto;
mod database;
mod delivery;
mod devices;
#[cfg(feature = "embedded-postgres")]
mod embedded;
mod endpoints;
mod engine;
mod errors;
mod evaluate;
mod gaps;
mod health;
mod homeserver;
mod http_client;
mod inbox;
mod interactive_auth;
mod keys;
mod late_keys;
mod membership;
mod message;
mod metrics;
mod outgoing;
mod own_device;
mod prune;
mod refusal;
mod responses;
mod retry;
mod rooms;
mod run;
mod scheduler;
mod session;
mod sync;
mod timeline;
mod tokens;
mod webhook;
mod withheld;

use std::{io::IsTerminal, process::ExitCode};

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{Metadata, error, info, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, filter_fn},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::{
    config::{Args, Config, DatabaseConfig},
    engine::Stop,
    errors::{BridgeError, exit_code},
};

/// At debug and trace level these crates log secrets: statement parameters and URLs.
const CAPPED_AT_INFO: [&str; 6] =
    ["tokio_postgres", "hyper", "hyper_util", "reqwest", "h2", "rustls"];

fn main() -> ExitCode {
    // Must run before any thread is started, because it changes the environment.
    let environment = read_env_file();
    let args = Args::parse();
    set_up_logging(args.verbose);
    let ended = environment.and_then(|()| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        runtime.map_err(unexpected)?.block_on(run(args))
    });
    match ended {
        Ok(()) => {
            info!("stopped");
            ExitCode::SUCCESS
        }
        Err(BridgeError::Fatal { code, message }) => {
            error!("{message}");
            ExitCode::from(code)
        }
        Err(error) => {
            error!("{error}");
            ExitCode::from(exit_code::UNEXPECTED)
        }
    }
}

async fn run(args: Args) -> Result<(), BridgeError> {
    if args.migrate_only {
        return engine::migrate_only(DatabaseConfig::try_from(&args)?).await;
    }
    let stop = Stop::default();
    stop_on_signals(stop.clone()).map_err(unexpected)?;
    engine::run(Config::try_from(args)?, stop).await
}

fn unexpected(error: std::io::Error) -> BridgeError {
    BridgeError::fatal(exit_code::UNEXPECTED, error.to_string())
}

/// Settings from a file `.env` in the working directory, if there is one; the environment wins.
fn read_env_file() -> Result<(), BridgeError> {
    let reason = match dotenvy::from_path(".env") {
        Ok(()) => return Ok(()),
        Err(error) if error.not_found() => return Ok(()),
        // The error quotes the line, which may hold a secret.
        Err(dotenvy::Error::LineParse(..)) => "a line of it is malformed".to_owned(),
        Err(error) => error.to_string(),
    };
    let message = format!("the file .env cannot be used: {reason}");
    Err(BridgeError::fatal(exit_code::CONFIGURATION, message))
}

fn set_up_logging(verbose: bool) {
    let default = if verbose {
        "info,webhook_bridge=debug,matrix_sdk_postgres=debug"
    } else {
        // The SDK warns of every message whose key is missing; the bridge logs these itself.
        "warn,webhook_bridge=info,matrix_sdk_crypto=error"
    };
    let chosen = std::env::var("RUST_LOG").ok().filter(|chosen| !chosen.is_empty());
    let filter = EnvFilter::builder().parse_lossy(chosen.as_deref().unwrap_or(default));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(verbose)
        .with_filter(filter.and(filter_fn(is_allowed)));
    tracing_subscriber::registry().with(lines).init();
}

fn is_allowed(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let named = target.split_once("::").map_or(target, |(crate_name, _)| crate_name);
    !CAPPED_AT_INFO.contains(&named) || *metadata.level() <= LevelFilter::INFO
}

/// SIGTERM and SIGINT stop the bridge cleanly; a second signal skips waiting for deliveries.
fn stop_on_signals(stop: Stop) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        for token in [&stop.graceful, &stop.immediate] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            info!("stopping");
            token.cancel();
        }
    });
    Ok(())
}
