//! `doctor`: everything at one look.

use std::{collections::BTreeMap, fmt::Write as _};

use matrix_sdk_postgres::{
    PostgresCryptoStore, PostgresStoreConfig,
    admin::{self, Check, CheckStatus, DoctorOptions, OwnDevice},
};
use ruma::UInt;
use serde_json::json;

use crate::{
    context::Context,
    homeserver::{Homeserver, HomeserverArgs},
    outcome::{Error, Outcome},
    text,
};

/// Look at everything that can be wrong: one line each, with what to do
///
/// It reads only, also while a bot runs. With --homeserver and a token of the bot's user it also
/// compares the homeserver's view of the device with ours; to count its one-time keys, the token must be
/// the bot's own. Exit code 3 if there is a problem.
#[derive(clap::Args)]
pub struct Args {
    /// The commit count as it was last noted elsewhere: a smaller one means that the database was rolled back
    #[arg(long, value_name = "COMMITS")]
    checkpoint: Option<u64>,
    /// The bot sets PoolSettings::prepared_statements to false
    #[arg(long)]
    unnamed_statements: bool,
    #[command(flatten)]
    homeserver: HomeserverArgs,
}

/// Where the pages are.
const PAGES: &str =
    concat!("https://docs.rs/crate/matrix-sdk-postgres/", env!("CARGO_PKG_VERSION"), "/source/");

pub async fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let is_without_token = args.homeserver.is_without_token()?;
    let homeserver = if is_without_token { None } else { args.homeserver.connect()? };
    let config = match context.account_filter() {
        Some(_) => context.config()?,
        None => context.database()?,
    };
    let progress = context.progress("looking", None);
    let options = DoctorOptions {
        checkpoint: args.checkpoint,
        prepared_statements: !args.unnamed_statements,
        ..Default::default()
    };
    let mut checks = admin::doctor(&config, &options).await;
    let mut device = Vec::new();
    let mut failure = None;
    if let Some(homeserver) = homeserver {
        match ask(&config, &homeserver).await {
            Ok(found) => device = found,
            Err(error) => failure = Some(error.message),
        }
    }
    drop(progress);
    if context.account_filter().is_none() {
        // A problem with the rows is none of the name.
        let is_unnamed = |check: &&mut Check| match check.name {
            "account" => true,
            "rows decode" => check.status == CheckStatus::NotChecked,
            _ => false,
        };
        for check in checks.iter_mut().filter(is_unnamed) {
            let advice =
                "give --account NAME, or set STORE_ACCOUNT; matrix-postgres stats lists them";
            not_checked(check, "no account is named".to_owned(), advice);
        }
    }
    checks.extend(device);
    let in_order =
        failure.is_none() && checks.iter().all(|check| check.status != CheckStatus::Problem);
    let mut text = render(&checks, failure.as_deref(), context.has_colours());
    if is_without_token {
        text.push_str("the homeserver was not asked: MATRIX_ACCESS_TOKEN is not set\n");
    }
    let json = json!({ "checks": text::json(&checks)?, "homeserver_error": failure });
    Ok(Outcome::done(text, json).in_order(in_order))
}

/// What the homeserver thinks of the device.
async fn ask(config: &PostgresStoreConfig, homeserver: &Homeserver) -> Result<Vec<Check>, Error> {
    let store = PostgresCryptoStore::open_with_config(config).await?;
    let own = store.own_device().await?;
    let own = own.ok_or_else(|| Error::failed("the account has no device yet: start the bot"))?;
    let (user, device) = homeserver.whoami().await?;
    check_token(&own, &user)?;
    let mut checks = admin::check_device(&own, &homeserver.keys(own.user_id.as_str()).await?);
    checks.push(one_time_keys(&own, device, homeserver).await?);
    let backup = homeserver.backup().await?;
    let backup = backup.as_ref().map(|(version, key)| (version.as_str(), key.as_deref()));
    checks.push(admin::check_key_backup(&own, backup));
    Ok(checks)
}

/// The homeserver counts these for the token's own device only.
async fn one_time_keys(
    own: &OwnDevice,
    device: Option<String>,
    homeserver: &Homeserver,
) -> Result<Check, Error> {
    if let Some(device) = device.filter(|device| own.device_id.as_str() != device) {
        let mut check = admin::check_one_time_keys(own, &BTreeMap::new());
        let found = format!("the token belongs to the device {device}, not to {}", own.device_id);
        not_checked(&mut check, found, "give the bot's own token to count them");
        return Ok(check);
    }
    let counts = homeserver.one_time_keys().await?;
    let counts = counts.as_object().into_iter().flatten().filter_map(|(algorithm, count)| {
        Some((algorithm.as_str().into(), count.as_u64().and_then(UInt::new)?))
    });
    Ok(admin::check_one_time_keys(own, &counts.collect()))
}

/// What could not be looked at, for a reason that this program knows.
fn not_checked(check: &mut Check, found: String, advice: &str) {
    (check.status, check.found) = (CheckStatus::NotChecked, found);
    (check.advice, check.doc) = (Some(advice.to_owned()), None);
}

fn check_token(own: &OwnDevice, user: &str) -> Result<(), Error> {
    if own.user_id.as_str() == user {
        return Ok(());
    }
    Err(Error::failed(format!(
        "the token belongs to {user}, but the account to {}: give a token of the bot's user",
        own.user_id
    )))
}

/// `failure`: why the homeserver could not be asked.
fn render(checks: &[Check], failure: Option<&str>, has_colours: bool) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    let mut out = String::new();
    for check in checks {
        let (word, colour) = match check.status {
            CheckStatus::Ok => ("ok     ", text::GREEN),
            CheckStatus::Warning => ("warning", text::YELLOW),
            CheckStatus::Problem => ("PROBLEM", text::RED),
            _ => ("skipped", text::CYAN),
        };
        let word = text::coloured(word, colour, has_colours);
        let _ = writeln!(out, "{word}  {:<width$}  {}", check.name, check.found);
        let indent = " ".repeat(width + 11);
        if let Some(advice) = &check.advice {
            let _ = writeln!(out, "{indent}→ {advice}");
        }
        if let Some(doc) = check.doc {
            let _ = writeln!(out, "{indent}  {PAGES}{doc}");
        }
    }
    if let Some(failure) = failure {
        let word = text::coloured("PROBLEM", text::RED, has_colours);
        let _ = writeln!(out, "{word}  {:<width$}  {failure}", "homeserver");
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let _ = writeln!(
        out,
        "{} in order, {}, {}, {} not checked",
        count(CheckStatus::Ok),
        text::number(count(CheckStatus::Warning), "warning"),
        text::number(count(CheckStatus::Problem) + usize::from(failure.is_some()), "problem"),
        count(CheckStatus::NotChecked)
    );
    out
}
