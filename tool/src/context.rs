//! What all commands share: how the database is reached, and how they speak.

use std::{
    future::Future,
    io::{self, IsTerminal, Write},
    sync::OnceLock,
};

use matrix_sdk_postgres::{Access, OpenStoreError, PoolSettings, PostgresStoreConfig};
use zeroize::Zeroizing;

use crate::{
    args::Global,
    outcome::{Error, Exit, Outcome},
    progress::Progress,
    prompt, secrets, text,
};

pub struct Context {
    global: Global,
    /// The account's passphrase, if it was prompted for.
    passphrase: OnceLock<Zeroizing<String>>,
}

impl Context {
    pub fn new(global: Global) -> Self {
        Self { global, passphrase: OnceLock::new() }
    }

    /// The server and the schema, for what concerns all accounts. It reads only.
    pub fn database(&self) -> Result<PostgresStoreConfig, Error> {
        // A name must be given; none is looked up.
        let account = self.global.account.clone().unwrap_or_else(|| "-".to_owned());
        self.config_for(&account)
    }

    /// The server, the schema and the account, for what needs no secret. It reads only.
    pub fn database_of_account(&self) -> Result<PostgresStoreConfig, Error> {
        self.config_for(&self.account()?)
    }

    /// The server, the schema and the account, with the secret that was given. It reads only, unless
    /// the command sets another access.
    pub fn config(&self) -> Result<PostgresStoreConfig, Error> {
        let config = self.config_for(&self.account()?)?;
        match self.passphrase.get() {
            Some(passphrase) => Ok(config.passphrase(Some(passphrase))),
            None => secrets::unlock(config, &self.global),
        }
    }

    /// The account that was named, of commands that concern all of them otherwise.
    pub fn account_filter(&self) -> Option<&str> {
        self.global.account.as_deref()
    }

    /// The account that was named.
    pub fn account(&self) -> Result<String, Error> {
        self.global.account.clone().ok_or_else(|| {
            Error::failed("no account is named: give --account NAME, or set STORE_ACCOUNT")
        })
    }

    /// Whether a secret for the account was given.
    pub fn has_secret(&self) -> Result<bool, Error> {
        secrets::is_given(&self.global)
    }

    fn config_for(&self, account: &str) -> Result<PostgresStoreConfig, Error> {
        let config = secrets::server(account, &self.global)?;
        // Whatever pooler is in between: statements without names pass through all of them.
        let pool = PoolSettings { prepared_statements: false, ..Default::default() };
        let config = config.schema(&self.global.schema).pool(pool);
        Ok(config.access(Access::ReadOnly).run_migrations(false))
    }

    /// Does what needs the account's secret. The passphrase of an encrypted account is prompted for once, if
    /// it was not given and there is a terminal; then `act` is called again.
    pub async fn unlocked<T, F: Future<Output = Result<T, OpenStoreError>>>(
        &self,
        act: impl Fn(PostgresStoreConfig) -> F,
    ) -> Result<T, Error> {
        match act(self.config()?).await {
            Err(OpenStoreError::EncryptedWithoutSecret { account }) if prompt::is_possible() => {
                let passphrase = prompt::secret(&format!("Passphrase of the account {account:?}"))?;
                self.passphrase.get_or_init(|| passphrase);
                Ok(act(self.config()?).await?)
            }
            done => Ok(done?),
        }
    }

    /// Fails unless the question is answered with yes, or `--yes` was given.
    pub fn confirm(&self, question: &str) -> Result<(), Error> {
        if self.global.yes || prompt::confirm(question)? {
            return Ok(());
        }
        Err(Error::refused("refused: nothing was changed (--yes answers the question with yes)"))
    }

    /// A progress bar over this number of steps on standard error, if that is a terminal; without a number,
    /// of unknown length.
    pub fn progress(&self, what: &'static str, steps: Option<u64>) -> Progress {
        let shows = !self.global.no_progress && !self.global.json && io::stderr().is_terminal();
        Progress::new(what, steps, shows)
    }

    /// Whether standard output is read by a person who wants colours.
    pub fn has_colours(&self) -> bool {
        let is_unset = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let is_capable = std::env::var_os("TERM").is_some_and(|value| value != "dumb");
        is_unset && is_capable && !self.global.json && io::stdout().is_terminal()
    }

    /// Prints what a command has done.
    pub fn print(&self, outcome: Outcome) -> io::Result<Exit> {
        let text = match self.global.json {
            true => format!("{:#}\n", outcome.json),
            false => text::printable(&outcome.text),
        };
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        Ok(outcome.exit)
    }

    /// Prints why a command failed: for programs where its result would be.
    pub fn print_error(&self, error: &Error) -> io::Result<Exit> {
        match self.global.json {
            true => writeln!(io::stdout(), "{:#}", error.json())?,
            false => writeln!(io::stderr(), "error: {}", text::printable(&error.message))?,
        }
        Ok(error.exit)
    }
}
