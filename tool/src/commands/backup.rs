//! `backup`: an account as an encrypted file.

use std::{
    fs::{self, File},
    io::{self, BufWriter},
    path::{Path, PathBuf},
};

use matrix_sdk_postgres::admin::{self, Backup, BackupError};
use serde_json::json;
use zeroize::Zeroizing;

use crate::{
    context::Context,
    interrupt, new_file,
    outcome::{Error, Outcome},
    prompt,
    sealed_file::{self, Seal, Unseal},
    secrets,
};

/// Write one account to an encrypted file
///
/// A consistent snapshot, also while a bot runs. The file is encrypted with age
/// (<https://age-encryption.org>), with a passphrase or for public keys; rows of an encrypted account are
/// sealed in it, too, so that the account's own passphrase or key is needed as well. With a passphrase the
/// file is read back before it gets its name.
#[derive(clap::Args)]
pub struct Args {
    /// The file to write; it must not exist
    file: PathBuf,
    /// Encrypt for this age public key instead of with a passphrase; may be repeated
    #[arg(long, value_name = "AGE1…")]
    recipient: Vec<String>,
    #[command(flatten)]
    passphrase: Passphrase,
}

/// What a backup is encrypted with.
#[derive(clap::Args)]
pub struct Passphrase {
    /// File with the backup's passphrase [env: BACKUP_PASSPHRASE]
    #[arg(long, env = "BACKUP_PASSPHRASE_FILE", value_name = "FILE")]
    backup_passphrase_file: Option<PathBuf>,
}

impl Passphrase {
    pub fn get(
        &self,
        ask: impl Fn(&str) -> Result<Zeroizing<String>, Error>,
    ) -> Result<Zeroizing<String>, Error> {
        let file = self.backup_passphrase_file.as_deref();
        secrets::file_passphrase(file, "BACKUP_PASSPHRASE", "backup", ask)
    }
}

impl From<BackupError> for Error {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Open(error) => error.into(),
            BackupError::OtherSchema { .. }
            | BackupError::OtherAccount { .. }
            | BackupError::NotEmpty { .. }
            | BackupError::NoDevice { .. }
            | BackupError::OtherDevice { .. }
            | BackupError::Old { .. } => Self::refused(error.to_string()),
            error => Error::failed(error.to_string()),
        }
    }
}

pub async fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let file = &args.file;
    if file.exists() {
        return Err(Error::refused(format!("{} exists: nothing was changed", file.display())));
    }
    let seal = match args.recipient.is_empty() {
        true => Seal::Passphrase(args.passphrase.get(prompt::new_secret)?),
        false => Seal::Recipients(args.recipient.clone()),
    };
    let partial = new_file::partial(file);
    let failed = |error: io::Error| Error::failed(format!("{}: {error}", partial.display()));
    let created = new_file::create(&partial).map_err(|error| in_the_way(&partial, &error))?;
    interrupt::remove_too(&partial);
    let written = write(created, &partial, &seal, context).await;
    let (backup, _locked) = match written {
        Ok(written) => written,
        Err(error) => {
            fs::remove_file(&partial).map_err(failed)?;
            return Err(error);
        }
    };
    new_file::complete(&partial, file, "backup")?;
    let size = fs::metadata(file).map_or(0, |data| data.len());
    let rows: u64 = backup.tables.iter().map(|table| table.rows).sum();
    let is_checked = matches!(seal, Seal::Passphrase(_));
    let text = format!(
        "{}: account {:?}, {rows} rows, {} commits, {size} bytes{}\n",
        file.display(),
        backup.account,
        backup.commits,
        if is_checked { ", read back" } else { "" },
    );
    let json = json!({ "file": file.to_string_lossy(), "bytes": size, "read_back": is_checked, "backup": backup });
    Ok(Outcome::done(text, json))
}

/// Why the file cannot be made.
fn in_the_way(partial: &Path, error: &io::Error) -> Error {
    let file = partial.display();
    if error.kind() != io::ErrorKind::AlreadyExists {
        return Error::failed(format!("{file}: {error}"));
    }
    let in_use = new_file::reopen(partial).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock);
    Error::failed(match in_use {
        true => format!("{file} is being written by another run: nothing was changed"),
        false => format!("{file} was left by a run that was killed: delete it"),
    })
}

async fn write(
    created: File,
    partial: &Path,
    seal: &Seal,
    context: &Context,
) -> Result<(Backup, File), Error> {
    let failed = |error: io::Error| {
        Error::failed(format!("{}: {error}; nothing is left of it", partial.display()))
    };
    let mut stream = seal.wrap(BufWriter::new(created))?;
    let bar = context.progress("backing up", None);
    let config = context.database_of_account()?;
    let backup = admin::backup(&config, &mut stream, &mut |bytes| bar.add(bytes)).await;
    let backup = backup.map_err(|error| match error {
        BackupError::Io(error) => failed(error),
        error => error.into(),
    })?;
    // Locked while it is read back, and until it has its name.
    let locked = sealed_file::finish(stream).map_err(failed)?;
    drop(bar);
    if let Seal::Passphrase(passphrase) = seal {
        let bar = context.progress("reading back", None);
        let opened = Unseal::Passphrase(passphrase.clone()).open(partial)?;
        admin::read_backup(&mut bar.count(opened))?;
    }
    Ok((backup, locked))
}
