//! `prune`: rows that are of no more use.

use std::time::Duration;

use matrix_sdk_postgres::admin::{self, PruneRules};

use crate::{
    context::Context,
    outcome::{Error, Outcome},
    text,
};

/// Delete old rows of an account, by rules that are all off by default
///
/// Ages are written as 90days, 6months or 1year. It runs in one transaction, may run while a bot runs, and
/// deletes nothing that a rule does not name.
#[derive(clap::Args)]
pub struct Args {
    /// Hashes of processed to-device messages: safe after some days, when no homeserver repeats them
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    message_hashes: Option<Duration>,
    /// Notices that a room key was withheld: they only explain why a message cannot be read
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    withheld: Option<Duration>,
    /// Requests for keys that were sent and not answered since: safe after some days
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    requests: Option<Duration>,
    /// Olm sessions of this age, with devices that are not known any more: give months; needs the passphrase
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    gone_devices: Option<Duration>,
    /// Outbound Megolm sessions that expired this long ago: safe; needs the passphrase
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    outbound: Option<Duration>,
    /// Room keys of this age: OLDER MESSAGES CAN NO LONGER BE READ
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    room_keys: Option<Duration>,
    /// Show what would be deleted, and end
    #[arg(long)]
    dry_run: bool,
}

pub async fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let rules = PruneRules {
        message_hashes: args.message_hashes,
        withheld_sessions: args.withheld,
        sent_requests: args.requests,
        gone_devices: args.gone_devices,
        expired_outbound_sessions: args.outbound,
        room_keys: args.room_keys,
    };
    if rules == PruneRules::default() {
        return Err(Error::failed(
            "no rule is given, and each is off by default: see prune --help",
        ));
    }
    let account = context.account()?;
    let count = |config| {
        let rules = &rules;
        async move {
            let _progress = context.progress("counting", None);
            admin::count_prunable(&config, rules).await
        }
    };
    // A rule that decodes nothing must not fail for want of a secret.
    let needs_secret = rules.gone_devices.is_some() || rules.expired_outbound_sessions.is_some();
    let counted = match needs_secret {
        true => context.unlocked(count).await?,
        false => count(context.database_of_account()?).await?,
    };
    if args.dry_run {
        let text = format!("would be deleted of account {account:?}:\n{}", text::counts(&counted));
        return Ok(Outcome::done(text, text::json(&counted)?));
    }
    let warning = match rules.room_keys {
        Some(_) => "Messages whose keys are deleted can no longer be read.\n",
        None => "",
    };
    context.confirm(&format!(
        "This deletes of account {account:?}:\n{}{warning}Go on?",
        text::counts(&counted)
    ))?;
    let prune = |config| {
        let rules = &rules;
        async move {
            let _progress = context.progress("pruning", None);
            admin::prune(&config, rules).await
        }
    };
    let pruned = match needs_secret {
        true => context.unlocked(prune).await?,
        false => prune(context.database_of_account()?).await?,
    };
    let text = format!("deleted of account {account:?}:\n{}", text::counts(&pruned));
    Ok(Outcome::done(text, text::json(&pruned)?))
}
