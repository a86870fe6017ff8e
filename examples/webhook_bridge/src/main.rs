//! A bot that receives end-to-end encrypted Matrix messages, decrypts them with keys kept only in
//! PostgreSQL, and forwards them to a webhook. See the README beside it.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod changes;
mod config;
mod crypto;
mod database;
mod delivery;
#[cfg(feature = "embedded-postgres")]
mod embedded;
mod endpoints;
mod engine;
mod errors;
mod gaps;
mod health;
mod homeserver;
mod http_client;
mod inbox;
mod keys;
mod message;
mod metrics;
mod retry;
mod rooms;
mod run;
mod session;
mod sync;
mod timeline;
mod webhook;
mod witness;

use std::{io::IsTerminal, process::ExitCode};

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::{
    config::{Args, Config},
    errors::{BridgeError, exit_code},
};

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    set_up_logging(args.verbose);
    let stop = CancellationToken::new();
    let ended = match stop_on_signals(stop.clone()) {
        Ok(()) => match Config::try_from(args) {
            Ok(config) => engine::run(config, stop).await,
            Err(error) => Err(error),
        },
        Err(error) => Err(BridgeError::last(exit_code::UNEXPECTED, error.to_string())),
    };
    match ended {
        Ok(()) => {
            info!("stopped");
            ExitCode::SUCCESS
        }
        Err(BridgeError::Final { code, message }) => {
            error!("{message}");
            ExitCode::from(code)
        }
        Err(error) => {
            error!("{error}");
            ExitCode::from(exit_code::UNEXPECTED)
        }
    }
}

fn set_up_logging(verbose: bool) {
    let default = if verbose {
        "info,webhook_bridge=debug,matrix_sdk_postgres=debug"
    } else {
        // The SDK warns of every message whose key has not come; so do we, in our words.
        "warn,webhook_bridge=info,matrix_sdk_crypto=error"
    };
    let chosen = std::env::var("RUST_LOG").ok().filter(|chosen| !chosen.is_empty());
    let filter = EnvFilter::builder().parse_lossy(chosen.as_deref().unwrap_or(default));
    // At debug this crate logs the parameters of statements: never let it.
    let quiet = format!("tokio_postgres={}", LevelFilter::INFO);
    let filter = match quiet.parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(verbose)
        .init();
}

/// SIGTERM and SIGINT end the bridge cleanly; a second one does not wait.
fn stop_on_signals(stop: CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if !stop.is_cancelled() {
                info!("stopping");
                stop.cancel();
            }
        }
        std::process::exit(i32::from(exit_code::UNEXPECTED));
    });
    Ok(())
}
