//! `verify`: every row, decoded.

use std::fmt::Write as _;

use matrix_sdk_postgres::admin::{self, VerifyOptions, VerifyReport};
use serde_json::json;

use crate::{
    context::Context,
    outcome::{Error, Outcome},
    text,
};

/// Open and decode every row of an account; set aside what does not decode, or put it back
///
/// It needs the account's passphrase or key, reads page by page, and works on a standby and while a
/// bot runs. Exit code 3 if a row does not decode and was not set aside, or not all were looked at.
#[derive(clap::Args)]
#[group(multiple = false)]
pub struct Args {
    /// Move rows that do not decode into the table quarantined_rows, where nothing reads them
    #[arg(long)]
    quarantine: bool,
    /// Put all rows of the account that were set aside back into their tables
    #[arg(long)]
    put_back: bool,
}

pub async fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    if args.put_back {
        return put_back(context).await;
    }
    if args.quarantine {
        context.confirm(
            "This sets aside the rows that do not decode. The bot goes on without them; \
             verify --put-back undoes it.",
        )?;
    }
    let counted = admin::count_account(&context.database_of_account()?).await?;
    let rows = counted.tables.iter().map(|table| table.rows).sum();
    let options = VerifyOptions { quarantine: args.quarantine, ..Default::default() };
    let verify = |config| {
        let options = &options;
        async move {
            let progress = context.progress("verifying", Some(rows));
            admin::verify(&config, options, |rows| progress.add(rows)).await
        }
    };
    let report = context.unlocked(verify).await?;
    let is_clean = report.is_clean();
    Ok(Outcome::done(render(&report), text::json(&report)?).in_order(is_clean))
}

async fn put_back(context: &Context) -> Result<Outcome, Error> {
    let config = context.database_of_account()?;
    context.confirm("This puts the rows that were set aside back into their tables.")?;
    let back = admin::put_back(&config).await?;
    let mut text = format!("{} rows put back\n", back.rows);
    if back.superseded > 0 {
        let _ = writeln!(text, "{} stay set aside: newer rows have their keys", back.superseded);
    }
    Ok(Outcome::done(text, json!(back)))
}

fn render(report: &VerifyReport) -> String {
    let mut out = String::new();
    let rows: Vec<Vec<String>> = report
        .tables
        .iter()
        .map(|table| {
            let numbers = [table.rows, table.corrupt, table.quarantined];
            let mut cells = vec![table.table.to_owned()];
            cells.extend(numbers.map(|number| number.to_string()));
            cells
        })
        .collect();
    out.push_str(&text::table(&["table", "rows", "corrupt", "set aside"], &rows));
    for table in &report.tables {
        for (reason, count) in &table.reasons {
            let _ = writeln!(out, "{}: {count} times {reason}", table.table);
        }
    }
    if !report.is_complete {
        let _ = writeln!(
            out,
            "{} rows; those set aside last are so on this server, but the wait for its synchronous standby was \
             cancelled, so a failover may put them back; the rest was not looked at: see to the standby, and \
             run the same command again",
            report.rows()
        );
        return out;
    }
    if report.is_clean() {
        let _ = writeln!(out, "{} rows, nothing left that does not decode", report.rows());
        return out;
    }
    let left = report.tables.iter().filter(|table| table.corrupt > table.quarantined);
    let (kept, other): (Vec<_>, Vec<_>) = left.partition(|table| table.table == "account_data");
    let or_aside = if other.is_empty() { "" } else { ", or verify --quarantine" };
    let _ = writeln!(
        out,
        "{} rows, of which some do not decode: restore them from a backup{or_aside}",
        report.rows()
    );
    if !kept.is_empty() {
        out.push_str(
            "those of account_data are never set aside: if it is the device's, and there is no backup, \
             matrix-postgres reset-device begins a new one\n",
        );
    }
    out
}
