//! `matrix-postgres`: what operators do with the stores of `matrix-sdk-postgres`. Commands that work on the
//! database call the library's module `admin`; files of room keys and of SQLite are read and written here.

mod args;
mod commands;
mod context;
#[cfg(test)]
mod fuzz;
mod homeserver;
mod import_sqlite;
mod interrupt;
mod key_file;
mod new_file;
mod outcome;
mod progress;
mod prompt;
mod sealed_file;
mod secrets;
mod text;

use std::{
    io::{self, Write},
    process::ExitCode,
    sync::Arc,
};

use clap::Parser;

use self::{args::Cli, context::Context, outcome::Exit};

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { global, command } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return wrong_command_line(&error),
    };
    let context = Arc::new(Context::new(global));
    interrupt::exit_on_signals(context.clone(), command.is_resumable());
    let printed = match commands::run(&command, &context).await {
        Ok(outcome) => context.print(outcome),
        Err(error) => context.print_error(&error),
    };
    let exit = printed.unwrap_or_else(|error| {
        // A reader that closes the pipe early, such as `head`, wants no more.
        if error.kind() != io::ErrorKind::BrokenPipe {
            let _ = writeln!(io::stderr(), "error: the result cannot be printed: {error}");
        }
        Exit::Failed
    });
    exit.into()
}

/// Prints help, the version, or what is wrong: for programs where a result would be.
fn wrong_command_line(error: &clap::Error) -> ExitCode {
    let is_for_programs = std::env::args_os().any(|arg| arg == "--json");
    if error.use_stderr() && is_for_programs {
        let message = error.to_string();
        let message = message.strip_prefix("error: ").unwrap_or(&message).trim_end().to_owned();
        let error = outcome::Error { message, exit: Exit::CommandLine };
        let _ = writeln!(io::stdout(), "{:#}", error.json());
        return error.exit.into();
    }
    // A person who sees nothing of it learns from the exit code.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1))
}
