//! `matrix-postgres`: what operators do with the stores of `matrix-sdk-postgres`. Commands that work on the
//! database call the library's module `admin`; files of room keys and of SQLite are read and written here.

mod args;
mod commands;
mod context;
#[cfg(test)]
mod fuzz;
mod homeserver;
mod import_sqlite;
mod interrupt;
mod key_file;
mod new_file;
mod outcome;
mod progress;
mod prompt;
mod sealed_file;
mod secrets;
mod text;

use std::{process::ExitCode, sync::Arc};

use clap::Parser;

use self::{args::Cli, context::Context, outcome::Exit};

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    let context = Arc::new(Context::new(global));
    interrupt::exit_on_ctrl_c(context.clone());
    match commands::run(&command, &context).await {
        Ok(outcome) => context.print(outcome),
        Err(error) => context.print_error(&error),
    }
    .unwrap_or(Exit::Failed)
    .into()
}
