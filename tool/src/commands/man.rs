//! `man`: the manual page, of the tool or of one command.

use clap::CommandFactory;
use clap_mangen::Man;
use serde_json::json;

use crate::{
    args::Cli,
    context::Context,
    outcome::{Error, Outcome},
};

/// Print the manual page: `matrix-postgres man | man -l -`.
#[derive(clap::Args)]
pub struct Args {
    /// A command's page instead of the tool's
    command: Option<String>,
}

pub async fn run(args: &Args, _context: &Context) -> Result<Outcome, Error> {
    let mut all = Cli::command();
    all.build();
    let page = match &args.command {
        None => all,
        Some(name) => {
            let found = all.find_subcommand(name).cloned();
            found.ok_or_else(|| Error::failed(format!("there is no command {name}")))?
        }
    };
    let mut text = Vec::new();
    let rendered = Man::new(page).render(&mut text);
    rendered.map_err(|error| Error::failed(format!("cannot write the page: {error}")))?;
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(Outcome::done(text.clone(), json!({ "page": text })))
}
