//! `import sqlite`: moves a bot's SQLite file into an account.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use serde_json::json;

use crate::{
    context::Context,
    homeserver::{Homeserver, HomeserverArgs, LastSeen},
    import_sqlite::{self, Opened, Report},
    outcome::{Error, Outcome},
    secrets::{self, Secret},
};

/// The last request of a bot that is stopped may be seen a little later than its last write; clocks differ.
const SLACK: Duration = Duration::from_secs(60);

const NEXT: &str = "The old bot must not start again: a device that lives in two places corrupts itself. \
                    Move the SQLite file away.";

/// Move a crypto store in from elsewhere
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    from: From,
}

#[derive(clap::Subcommand)]
enum From {
    /// From the file of matrix-sdk-sqlite, 0.7 to 0.19, into an empty account
    ///
    /// The file is copied first and never written to. All or nothing that a bot could use: the device itself
    /// is the last transaction, after every row was read back and compared. An import that was interrupted
    /// continues when it is run again.
    ///
    /// The bot must be stopped for good: a device that lives in two places corrupts itself. With --homeserver
    /// and a token of another login of the bot's user, the import is refused when the device was seen after
    /// the file's last change. The device's own token does not do: by asking with it the device is seen.
    ///
    /// A schema that is missing is made; an older one has to be migrated first (matrix-postgres migrate).
    Sqlite(Sqlite),
}

#[derive(clap::Args)]
struct Sqlite {
    /// matrix-sdk-crypto.sqlite3, or the folder that it is in
    path: PathBuf,
    /// Read everything, and show what would be imported; needs no database
    #[arg(long)]
    check: bool,
    /// File with the passphrase of the SQLite file [env: SQLITE_PASSPHRASE]
    #[arg(long, env = "SQLITE_PASSPHRASE_FILE", value_name = "FILE")]
    source_passphrase_file: Option<PathBuf>,
    /// File with the key of the SQLite file: 64 hexadecimal digits, base64, or 32 bytes [env: SQLITE_KEY]
    #[arg(long, env = "SQLITE_KEY_FILE", value_name = "FILE")]
    source_key_file: Option<PathBuf>,
    #[command(flatten)]
    homeserver: HomeserverArgs,
    /// Import although the homeserver has seen the device after the file's last change
    #[arg(long)]
    old_bot_is_stopped: bool,
    /// Leave rows behind that cannot be decoded
    #[arg(long)]
    skip_undecodable: bool,
    /// Put what is encrypted in the file into an account that is not
    #[arg(long)]
    unencrypted: bool,
}

pub async fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let From::Sqlite(args) = &args.from;
    let secret = args.secret()?;
    let opened = import_sqlite::open(&args.path, secret.as_ref(), context)?;
    drop(secret);
    let report = opened.check(context).await?;
    if args.check {
        let is_in_order = report.undecodable() == 0;
        let mut text = report.text("would come");
        if args.homeserver.homeserver.is_some() {
            text.push_str(
                "\nThe homeserver was not asked: the import does that, --check does not.\n",
            );
        }
        return Ok(Outcome::done(text, report.json()).in_order(is_in_order));
    }
    args.import(&opened, &report, context).await
}

impl Sqlite {
    fn secret(&self) -> Result<Option<Secret>, Error> {
        let file = self.source_passphrase_file.as_deref();
        let passphrase =
            secrets::secret(file, "SQLITE_PASSPHRASE", "the passphrase of the SQLite file")?;
        let file = self.source_key_file.as_deref();
        let key = secrets::key_bytes(file, "SQLITE_KEY", "the key of the SQLite file")?;
        Secret::one_of(passphrase, key, "a passphrase and a key for the SQLite file")
    }

    /// Fails if the device was used after the file was last written to, or that cannot be known although the
    /// homeserver was named. Returns a note if the homeserver does not say it.
    async fn refuse_if_seen(
        &self,
        opened: &Opened,
        user_id: &str,
        device_id: &str,
    ) -> Result<Option<String>, Error> {
        let Some(homeserver) = self.homeserver.connect()? else { return Ok(None) };
        let (user, device) = homeserver.whoami().await?;
        if user != user_id {
            return Err(Error::refused(format!(
                "the token is of {user}, and the file of {user_id}; nothing was changed"
            )));
        }
        if self.old_bot_is_stopped {
            return Ok(None);
        }
        if device.as_deref() == Some(device_id) {
            return Err(Error::refused(format!(
                "the token is that of the device {device_id} itself, which the homeserver has seen by being \
                 asked with it: give the token of another login of {user_id}, or, if the old bot is stopped \
                 for good, say --old-bot-is-stopped; nothing was changed"
            )));
        }
        match last_seen(&homeserver, device_id).await? {
            Some(seen) if seen > opened.changed_at + SLACK => Err(Error::refused(format!(
                "the homeserver has seen the device {device_id} at {}, after the file's last change at \
                 {}: is the bot still running, or is this an old copy? If it is stopped for good and \
                 this is its file, say --old-bot-is-stopped; nothing was changed",
                humantime::format_rfc3339_seconds(seen),
                humantime::format_rfc3339_seconds(opened.changed_at),
            ))),
            Some(_) => Ok(None),
            None => Ok(Some(format!(
                "The homeserver does not say when it has seen the device {device_id}: whether the old bot is \
                 stopped was not checked."
            ))),
        }
    }

    async fn import(
        &self,
        opened: &Opened,
        report: &Report,
        context: &Context,
    ) -> Result<Outcome, Error> {
        let undecodable = report.undecodable();
        if undecodable > 0 && !self.skip_undecodable {
            return Err(Error::refused(format!(
                "{}\n{undecodable} rows cannot be decoded; nothing was changed. --skip-undecodable \
                 leaves them behind",
                report.text("would come")
            )));
        }
        if self.unencrypted && context.has_secret()? {
            return Err(Error::failed(
                "--unencrypted and a secret for the account were given: give one of them",
            ));
        }
        if opened.is_encrypted() && !self.unencrypted && !context.has_secret()? {
            return Err(Error::refused(
                "the file is encrypted, and no secret for the account was given: set STORE_PASSPHRASE or \
                 STORE_KEY, or say --unencrypted; nothing was changed",
            ));
        }
        let (user_id, device_id) = opened.device();
        let note = self.refuse_if_seen(opened, &user_id, &device_id).await?;
        let account = context.account()?;
        let target = opened.target(context.config()?, account.clone()).await?;
        let imported = opened.import(&target, context).await;
        // Also after an error, so that the same command can be run again at once.
        let closed = target.close().await;
        imported?;
        closed?;
        let mut text = report.text("came");
        text.push_str(&format!(
            "\nEvery row was read back and is the same. The account {account:?} is now the device \
             {device_id} of {user_id}.\n{NEXT}\n"
        ));
        if let Some(note) = &note {
            text.push_str(&format!("{note}\n"));
        }
        if !context.has_secret()? {
            text.push_str(
                "The account is not encrypted: no passphrase and no key were given for it.\n",
            );
        }
        let json = json!({
            "account": account, "imported": report.json(), "next": NEXT, "note": note,
        });
        Ok(Outcome::done(text, json))
    }
}

/// When the homeserver has seen the device, if it says so. Fails if it does not know the device.
async fn last_seen(homeserver: &Homeserver, device_id: &str) -> Result<Option<SystemTime>, Error> {
    match homeserver.last_seen(device_id).await? {
        LastSeen::At(seen) => Ok(SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(seen))),
        LastSeen::Unknown => Ok(None),
        LastSeen::NoDevice => Err(Error::refused(format!(
            "the homeserver does not know the device {device_id}: it was logged out, and others cannot send to \
             it. To save its room keys, import it with --old-bot-is-stopped, run matrix-postgres reset-device, \
             and let the bot log in as a new device; nothing was changed"
        ))),
    }
}
