//! `migrate`: the schema's version.

use std::fmt::Write as _;

use matrix_sdk_postgres::admin::{self, MigrationStatus};
use serde_json::json;

use crate::{
    context::Context,
    outcome::{Error, Outcome},
    text,
};

/// Create the schema or bring it up to date; or show what that would do
///
/// Without an argument the pending migrations are applied, in one transaction. Programs that work with the
/// schema as it is keep working, unless `migrate status` says otherwise.
#[derive(clap::Args)]
#[group(multiple = false)]
pub struct Args {
    /// Only show which migrations are applied and which are pending; exit code 3 if any is
    #[arg(value_enum)]
    action: Option<Action>,
    /// Apply the pending migrations, and take them back: shows whether this role may
    #[arg(long)]
    dry_run: bool,
    /// Print the SQL of the pending migrations, for a DBA who applies it with another role
    #[arg(long)]
    print_sql: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Action {
    Status,
}

pub async fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let config = context.database()?;
    let status = admin::migration_status(&config).await?;
    if matches!(args.action, Some(Action::Status)) {
        let is_current = status.is_current();
        return Ok(Outcome::done(render(&status), text::json(&status)?).in_order(is_current));
    }
    if args.print_sql {
        let sql = admin::migration_script(&config).await?;
        let text = if sql.is_empty() { "-- nothing is pending\n".to_owned() } else { sql.clone() };
        return Ok(Outcome::done(text, json!({ "sql": sql })));
    }
    let _progress = context.progress("migrating", None);
    if args.dry_run {
        admin::try_migrations(&config).await?;
        let text = render(&status) + "dry run: all of it was applied and taken back\n";
        return Ok(Outcome::done(text, json!({ "before": status, "dry_run": true })));
    }
    if status.is_current() {
        let json = json!({ "before": status, "after": status });
        return Ok(Outcome::done("nothing was pending\n", json));
    }
    config.migrate().await?;
    let after = admin::migration_status(&config).await?;
    Ok(Outcome::done(render(&after), json!({ "before": status, "after": after })))
}

fn render(status: &MigrationStatus) -> String {
    let mut text = format!("schema {}", status.schema);
    text.push_str(if status.exists { "\n" } else { ", which does not exist yet\n" });
    for part in &status.parts {
        let _ = write!(text, "  {:<13} version {}", part.part, part.installed);
        if part.is_too_new {
            let _ = write!(text, ", which is newer than this program knows: upgrade it");
        }
        for migration in &part.pending {
            let _ = write!(text, ", pending: {} {}", migration.version, migration.name);
        }
        text.push('\n');
    }
    let exists = status.parts.iter().any(|part| part.installed > 0);
    if exists && !status.is_current() && !status.keeps_older_programs() {
        text.push_str("programs that work with the schema as it is must be upgraded with it\n");
    }
    text
}
