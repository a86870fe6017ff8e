//! `stats`: what the schema holds.

use std::fmt::Write as _;

use matrix_sdk_postgres::admin::{self, AccountStats, Stats};

use crate::{
    context::Context,
    outcome::{Error, Outcome},
    text,
};

/// Show what the schema holds: accounts, owners, sessions, rooms, sizes
///
/// Without --account all accounts are shown. It reads each table once, in one snapshot, and needs no
/// passphrase. It works on a standby, and while a bot runs.
#[derive(clap::Args)]
pub struct Args {
    /// Show tables without rows, too
    #[arg(long)]
    all: bool,
}

pub async fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let config = context.database()?;
    let progress = context.progress("counting", None);
    let mut stats = admin::stats(&config).await?;
    drop(progress);
    if let Some(name) = context.account_filter() {
        stats.accounts.retain(|account| account.name == name);
        if stats.accounts.is_empty() {
            return Err(Error::failed(format!("there is no account {name:?}")));
        }
    }
    let is_one = context.account_filter().is_some();
    let bytes = if is_one { stats.accounts.iter().map(|a| a.bytes).sum() } else { stats.bytes };
    Ok(Outcome::done(render(&stats, bytes, args.all), text::json(&stats)?))
}

fn render(stats: &Stats, bytes: u64, all: bool) -> String {
    let mut out = format!(
        "schema {}: {}, {}\n",
        stats.schema,
        text::number(stats.accounts.len(), "account"),
        text::bytes(bytes)
    );
    for account in &stats.accounts {
        render_account(&mut out, account, all);
    }
    out
}

fn render_account(out: &mut String, account: &AccountStats, all: bool) {
    let kind = if account.is_encrypted { "encrypted" } else { "NOT encrypted" };
    let _ = writeln!(
        out,
        "\naccount {} ({kind}, created {})",
        account.name,
        text::time(account.created_at)
    );
    let owner = match &account.owner {
        Some(owner) => format!(
            "{} since {}, {}",
            owner.name,
            text::time(owner.since),
            if owner.is_alive { "alive" } else { "not alive" }
        ),
        None => "none".to_owned(),
    };
    let _ = writeln!(out, "  owner            {owner}");
    let _ = writeln!(out, "  last sync        {}", text::time(account.last_sync));
    let _ = writeln!(out, "  commits          {}", account.commits);
    let _ = writeln!(
        out,
        "  room keys        {} in {} rooms, oldest {}, newest {}",
        account.room_keys,
        account.rooms_with_keys,
        text::time(account.oldest_room_key),
        text::time(account.newest_room_key)
    );
    let per_100 = match (account.bytes_per_100_rooms.map(text::bytes), account.rooms_with_keys) {
        (None, _) => "no encrypted rooms".to_owned(),
        (Some(size), 100..) => {
            format!("{size} per 100 encrypted rooms; about 1 MB is expected")
        }
        (Some(size), rooms) => format!(
            "{size} per 100 encrypted rooms, extrapolated from {rooms}: with few rooms most of it is the \
             tables' own size"
        ),
    };
    let _ = writeln!(out, "  size             {} ({per_100})", text::bytes(account.bytes));
    let days = &account.room_keys_per_day;
    if !days.is_empty() {
        let days = days.iter().map(|(day, count)| format!("{day} {count}"));
        let _ = writeln!(out, "  new room keys    {}", days.collect::<Vec<_>>().join(", "));
    }
    let tables = account.tables.iter().filter(|table| all || table.rows > 0);
    let rows: Vec<Vec<String>> = tables
        .map(|table| vec![table.name.to_owned(), table.rows.to_string(), text::bytes(table.bytes)])
        .collect();
    out.push_str(&text::table(&["table", "rows", "size"], &rows));
}
