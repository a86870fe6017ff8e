//! `completions`: for the shell.

use clap::CommandFactory;
use clap_complete::{Shell, generate};
use serde_json::json;

use crate::{
    args::Cli,
    context::Context,
    outcome::{Error, Outcome},
};

/// Print a shell's completions.
#[derive(clap::Args)]
pub struct Args {
    /// The shell
    shell: Shell,
}

pub async fn run(args: &Args, _context: &Context) -> Result<Outcome, Error> {
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "matrix-postgres", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    Ok(Outcome::done(script.clone(), json!({ "shell": args.shell.to_string(), "script": script })))
}
