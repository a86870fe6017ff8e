//! The commands: a file for each.

mod backup;
mod completions;
mod export_keys;
mod import_keys;
mod import_sqlite;
mod man;
mod restore;

use clap::Subcommand;

use crate::{
    context::Context,
    outcome::{Error, Outcome},
};

/// What there is to do.
#[derive(Subcommand)]
pub enum Command {
    /// Print a shell's completions
    Completions(completions::Args),
    /// Move a crypto store in from elsewhere
    Import(import_sqlite::Args),
    /// Print the manual page
    Man(man::Args),
}

pub async fn run(command: &Command, context: &Context) -> Result<Outcome, Error> {
    match command {
        Command::Completions(args) => completions::run(args, context).await,
        Command::Import(args) => import_sqlite::run(args, context).await,
        Command::Man(args) => man::run(args, context).await,
    }
}
