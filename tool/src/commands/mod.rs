//! The commands: a file for each.

mod backup;
mod completions;
mod delete_account;
mod doctor;
mod export_keys;
mod import_keys;
mod import_sqlite;
mod man;
mod migrate;
mod prune;
mod rekey;
mod reset_device;
mod restore;
mod self_test;
mod stats;
mod verify;

use clap::Subcommand;

use crate::{
    context::Context,
    outcome::{Error, Outcome},
};

/// What there is to do.
#[derive(Subcommand)]
pub enum Command {
    Doctor(doctor::Args),
    SelfTest(self_test::Args),
    Stats(stats::Args),
    Verify(verify::Args),
    Migrate(migrate::Args),
    Rekey(rekey::Args),
    ResetDevice(reset_device::Args),
    DeleteAccount(delete_account::Args),
    Import(import_sqlite::Args),
    ExportKeys(export_keys::Args),
    ImportKeys(import_keys::Args),
    Backup(backup::Args),
    Restore(restore::Args),
    Prune(prune::Args),
    Completions(completions::Args),
    Man(man::Args),
}

impl Command {
    /// Whether it goes on where an interrupted run of it has ended.
    pub fn is_resumable(&self) -> bool {
        matches!(self, Self::Import(_) | Self::ExportKeys(_) | Self::ImportKeys(_))
    }
}

pub async fn run(command: &Command, context: &Context) -> Result<Outcome, Error> {
    match command {
        Command::Doctor(args) => doctor::run(args, context).await,
        Command::SelfTest(args) => self_test::run(args, context).await,
        Command::Stats(args) => stats::run(args, context).await,
        Command::Verify(args) => verify::run(args, context).await,
        Command::Migrate(args) => migrate::run(args, context).await,
        Command::Rekey(args) => rekey::run(args, context).await,
        Command::ResetDevice(args) => reset_device::run(args, context).await,
        Command::Prune(args) => prune::run(args, context).await,
        Command::DeleteAccount(args) => delete_account::run(args, context).await,
        Command::Import(args) => import_sqlite::run(args, context).await,
        Command::ExportKeys(args) => export_keys::run(args, context).await,
        Command::ImportKeys(args) => import_keys::run(args, context).await,
        Command::Backup(args) => backup::run(args, context).await,
        Command::Restore(args) => restore::run(args, context).await,
        Command::Completions(args) => completions::run(args, context).await,
        Command::Man(args) => man::run(args, context).await,
    }
}
