//! `delete-account`: deletes an account with all its rows.

use matrix_sdk_postgres::admin;

use crate::{
    context::Context,
    outcome::{Error, Outcome},
    text,
};

/// Delete an account with all its keys, for ever
///
/// Refused while a process has the account open. It needs no passphrase. The row that holds the account's
/// key goes first, all in one transaction; other accounts are not touched. Backups of the database still
/// hold the account.
#[derive(clap::Args)]
pub struct Args {
    /// Show what would be deleted, and end
    #[arg(long)]
    dry_run: bool,
}

pub async fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let account = context.account()?;
    let config = context.database_of_account()?;
    let found = admin::count_account(&config).await?;
    let listed = text::counts(&found);
    if args.dry_run {
        let text = format!("would be deleted of account {account:?}:\n{listed}");
        return Ok(Outcome::done(text, text::json(&found)?));
    }
    context.confirm(&format!(
        "This deletes the account {account:?} for ever, with every message key it has:\n{listed}\
         Messages whose keys are in no other backup can never be read again."
    ))?;
    let _progress = context.progress("deleting", None);
    let deleted = admin::delete_account(&config).await?;
    let text = format!("deleted account {account:?}:\n{}", text::counts(&deleted));
    Ok(Outcome::done(text, text::json(&deleted)?))
}
