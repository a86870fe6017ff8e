//! `reset-device`: a new device, the old room keys.

use matrix_sdk_postgres::admin;

use crate::{
    context::Context,
    outcome::{Error, Outcome},
    text,
};

/// Make the bot a new device at its next start; room keys, trust and backup stay
///
/// For use after the database was rolled back, and for a device whose keys no longer match
/// what the homeserver has ("one time key already exists"). Refused while a process has the account open. It
/// needs no passphrase.
#[derive(clap::Args)]
pub struct Args {
    /// Show what would be deleted, and end
    #[arg(long)]
    dry_run: bool,
}

const NEXT: &str = "\
next:
  1. log the old device out at the homeserver: its keys there are of no use any more
  2. forget the old login in the bot's own state: access token, device id, sync position, checkpoint
  3. start the bot: it logs in with a NEW device id, and uploads new keys
";

pub async fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let account = context.account()?;
    let config = context.database_of_account()?;
    let found = admin::count_device(&config).await?;
    let listed = text::counts(&found);
    if args.dry_run {
        let text = format!("would be deleted of account {account:?}:\n{listed}");
        return Ok(Outcome::done(text, text::json(&found)?));
    }
    context.confirm(&format!(
        "This deletes the device of the account {account:?}, its sessions with other devices, and its sync \
         position:\n{listed}Room keys, other devices and their trust, cross-signing and backup keys stay."
    ))?;
    let _progress = context.progress("resetting", None);
    let reset = admin::reset_device(&config).await?;
    let text = format!("deleted of account {account:?}:\n{}{NEXT}", text::counts(&reset));
    Ok(Outcome::done(text, text::json(&reset)?))
}
