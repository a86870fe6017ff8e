//! `matrix-postgres`: what operators do with the stores of `matrix-sdk-postgres`. It only calls the
//! library.

mod args;
mod commands;
mod context;
#[cfg(test)]
mod fuzz;
mod homeserver;
mod import_sqlite;
mod key_file;
mod new_file;
mod outcome;
mod progress;
mod prompt;
mod sealed_file;
mod secrets;
mod text;

use std::process::ExitCode;

use clap::Parser;

use self::{args::Cli, context::Context, outcome::Exit};

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    let context = Context::new(global);
    let done = tokio::select! {
        done = commands::run(&command, &context) => done,
        interrupted = tokio::signal::ctrl_c() => match interrupted {
            Ok(()) => return context.interrupted(),
            Err(error) => Err(outcome::Error::failed(format!("cannot wait for Ctrl-C: {error}"))),
        },
    };
    match done {
        Ok(outcome) => context.print(outcome),
        Err(error) => context.print_error(&error),
    }
    .unwrap_or(Exit::Failed)
    .into()
}
