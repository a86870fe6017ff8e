//! A bot that receives end-to-end encrypted Matrix messages, decrypts them with keys kept only in
//! PostgreSQL, and forwards them to a webhook. See the README.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod allow_list;
mod api;
mod attachment;
mod auth;
mod backup;
mod breaker;
mod changes;
mod checkpoint;
mod config;
mod cross_signing;
mod crypto;
mod database;
mod dead_letters;
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
mod labels;
mod late_keys;
mod logging;
mod membership;
mod message;
mod metrics;
mod migrate_only;
mod outgoing;
mod own_device;
mod prune;
mod refusal;
mod relation;
mod responses;
mod retry;
mod rooms;
mod run;
mod scheduler;
mod sealing;
mod secret_storage;
mod server;
mod session;
mod sync;
mod timeline;
mod tokens;
mod trusted_bridges;
mod untrusted;
mod webhook;
mod withheld;

use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

use crate::{
    config::{Args, Command, Config, DatabaseConfig},
    engine::Stop,
    errors::{BridgeError, exit_code},
};

fn main() -> ExitCode {
    // Must run before any thread is started, because it changes the environment.
    let environment = read_env_file();
    let args = Args::parse();
    let logging = logging::set_up(&args);
    let ended = environment.and(logging).and_then(|()| {
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
        return migrate_only::run(DatabaseConfig::try_from(&args)?).await;
    }
    if let Some(Command::DeadLetters { command }) = &args.command {
        return dead_letters::run(&args, command).await;
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
