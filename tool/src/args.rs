//! The command line. What is said here is also the man page.

use std::path::PathBuf;

use clap::{Args, Parser};

use crate::commands::Command;

const EXIT_CODES: &str = "\
Exit codes:
  0    done, and nothing is wrong
  1    failed: the message says what, and what to do
  2    the command line is wrong
  3    done, and what was looked at is not in order, or a failover may undo it
  4    refused, nothing was changed: the account has a live owner or is not empty, the file is of
       another account or schema version or too old, the device may be in use elsewhere, or the
       question was not answered with yes
  5    the server cannot be reached or is busy: the same command may succeed later
  130  interrupted: by Ctrl-C, a closed terminal, or a request to end (SIGINT, SIGHUP, SIGTERM)

Secrets come from the environment, a file or a prompt, never from the command line, which
other users of the machine can read:
  DATABASE_URL, DATABASE_URL_FILE          connection string; libpq's PG* variables fill in
  STORE_PASSPHRASE, STORE_PASSPHRASE_FILE  what the account is encrypted with,
  STORE_KEY, STORE_KEY_FILE                or its key: 64 hexadecimal digits, or base64
Without them an encrypted account's passphrase is prompted for, if there is a terminal.";

/// The operator's tool for matrix-sdk-postgres: look inside, change keys, move in and out.
///
/// No command disturbs a running bot, unless its help says so; such a command asks for confirmation.
#[derive(Parser)]
#[command(version, name = "matrix-postgres", after_help = EXIT_CODES, max_term_width = 110)]
#[command(propagate_version = true, color = clap::ColorChoice::Auto)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Settings of all commands.
#[derive(Args)]
pub struct Global {
    /// Connection string without a password [default: DATABASE_URL, DATABASE_URL_FILE, libpq's variables]
    #[arg(long, global = true, value_name = "URL", help_heading = "Database")]
    pub url: Option<String>,
    /// File that holds the connection string
    #[arg(
        long,
        env = "DATABASE_URL_FILE",
        global = true,
        value_name = "FILE",
        help_heading = "Database"
    )]
    pub url_file: Option<PathBuf>,
    /// The store's schema
    #[arg(
        long,
        env = "STORE_SCHEMA",
        global = true,
        default_value = "matrix_sdk",
        help_heading = "Database"
    )]
    pub schema: String,
    /// The account's name, as the bot gives it
    #[arg(long, short, env = "STORE_ACCOUNT", global = true, help_heading = "Database")]
    pub account: Option<String>,
    /// File that holds the passphrase; one newline at its end is not part of it
    #[arg(
        long,
        env = "STORE_PASSPHRASE_FILE",
        global = true,
        value_name = "FILE",
        help_heading = "Secrets"
    )]
    pub passphrase_file: Option<PathBuf>,
    /// File that holds the key: 64 hexadecimal digits, base64, or 32 bytes
    #[arg(
        long,
        env = "STORE_KEY_FILE",
        global = true,
        value_name = "FILE",
        help_heading = "Secrets"
    )]
    pub key_file: Option<PathBuf>,
    /// Print one JSON document to standard output, errors too
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,
    /// Show no progress bars (there are none without a terminal)
    #[arg(long, global = true, help_heading = "Output")]
    pub no_progress: bool,
    /// Answer yes to the command's question
    #[arg(long, short, global = true, help_heading = "Output")]
    pub yes: bool,
}
