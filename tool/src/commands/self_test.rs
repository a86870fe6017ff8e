//! `self-test`: a throwaway account.

use std::fmt::Write as _;

use matrix_sdk_postgres::admin;

use crate::{
    context::Context,
    outcome::{Error, Outcome},
    text,
};

/// Try the store with a throwaway account: write, open again, cut the connections, read, delete
///
/// It uses the configured server, role, schema and pooler, and touches no other account. Exit code 3 if
/// a step fails.
#[derive(clap::Args)]
pub struct Args {
    /// Create the schema or bring it up to date, if that is needed
    #[arg(long)]
    migrate: bool,
}

pub async fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let config = context.database()?.run_migrations(args.migrate);
    let progress = context.progress("testing", None);
    let test = admin::self_test(&config).await;
    drop(progress);
    let mut out = String::new();
    let has_colours = context.has_colours();
    let green = text::coloured("ok    ", text::GREEN, has_colours);
    let red = text::coloured("FAILED", text::RED, has_colours);
    for step in &test.steps {
        let note = step.note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
        let _ = match &step.error {
            None => writeln!(out, "{green}  {}{note}", step.name),
            Some(error) => writeln!(out, "{red}  {}: {error}", step.name),
        };
    }
    let passed = test.is_passed();
    let _ = writeln!(out, "{}", if passed { "self-test passed" } else { "self-test FAILED" });
    Ok(Outcome::done(out, text::json(&test)?).in_order(passed))
}
