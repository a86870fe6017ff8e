//! `restore`: a backup, back in a database.

use std::path::PathBuf;

use matrix_sdk_postgres::admin::{self, RestoredDevice};
use serde_json::json;

use super::backup::Passphrase;
use crate::{
    context::Context,
    outcome::{Error, Outcome},
    prompt,
    sealed_file::Unseal,
    secrets,
};

/// Restore a backup into an empty account: as a new device, unless --same-device is given
///
/// The device in a backup may have sent messages since, and an old ratchet must not be used again. So its
/// room keys, trust and server-side backup are restored, and the bot logs in as a new device. With
/// --same-device the device goes on, which is safe only if the backup has everything that it has done: give
/// --checkpoint, or --from-url-file, where it is removed in the same step, which is asked for first. A move is
/// not made twice: without a device there it is refused.
///
/// All or nothing. A schema that is missing is made; an older one has to be migrated first (matrix-postgres
/// migrate). The account keeps the name that it had: with --account another name is refused.
#[derive(clap::Args)]
pub struct Args {
    /// The file that backup wrote
    file: PathBuf,
    #[command(flatten)]
    passphrase: Passphrase,
    /// age private key, as age-keygen writes it, if the backup is encrypted for a public key
    #[arg(long, value_name = "FILE")]
    identity_file: Option<PathBuf>,
    /// Go on as the same device
    #[arg(long)]
    same_device: bool,
    /// How many commits the account has made, from a number kept elsewhere
    #[arg(long, value_name = "N", requires = "same_device", conflicts_with = "from_url_file")]
    checkpoint: Option<u64>,
    /// File with the connection string of the database that has the device now: it is removed there
    #[arg(long, value_name = "FILE", requires = "same_device")]
    from_url_file: Option<PathBuf>,
    /// The schema there
    #[arg(long, default_value = "matrix_sdk", requires = "from_url_file")]
    from_schema: String,
    /// Read the whole file and show what is in it; needs no database
    #[arg(long, conflicts_with = "same_device")]
    check: bool,
}

pub async fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let unseal = match &args.identity_file {
        Some(file) => Unseal::identities(file)?,
        None => Unseal::Passphrase(args.passphrase.get(prompt::secret)?),
    };
    // All of it is read first: what is changed or cut off is noticed before anything is touched.
    let bar = context.progress("reading", None);
    let backup = admin::read_backup(&mut bar.count(unseal.open(&args.file)?))?;
    drop(bar);
    let rows: u64 = backup.tables.iter().map(|table| table.rows).sum();
    let what = format!(
        "account {:?} of {}: {rows} rows, {} commits",
        backup.account, backup.made_at, backup.commits
    );
    let json = json!({ "file": args.file.to_string_lossy(), "backup": backup });
    if args.check {
        return Ok(Outcome::done(format!("{what}\n"), json));
    }
    let account = context.account_filter().unwrap_or(&backup.account);
    let config = context.database()?.account(account);
    let device = args.device(&backup.account)?;
    if account == backup.account
        && let Some(file) = &args.from_url_file
    {
        context.confirm(&format!(
            "This moves the device of the account {account:?} here, from the schema {:?} of the database that \
             {} names: it is removed there.",
            args.from_schema,
            file.display(),
        ))?;
    }
    let bar = context.progress("restoring", None);
    let mut opened = unseal.open(&args.file)?;
    let restored = admin::restore(&config, &mut opened, &device, &mut |bytes| bar.add(bytes)).await;
    drop(bar);
    restored?;
    let then = match device {
        RestoredDevice::New => {
            "It has no device: let the bot log in again, with a new device id. Log the old one out."
        }
        RestoredDevice::Moved { .. } => {
            "The device goes on here, and is removed from where it was."
        }
        _ => "The device goes on here. The account it was backed up from must never be used again.",
    };
    Ok(Outcome::done(format!("restored: {what}\n{then}\n"), json))
}

impl Args {
    fn device(&self, account: &str) -> Result<RestoredDevice, Error> {
        match (self.same_device, self.checkpoint, &self.from_url_file) {
            (false, ..) => Ok(RestoredDevice::New),
            (true, Some(checkpoint), _) => Ok(RestoredDevice::Same { checkpoint }),
            (true, None, Some(file)) => {
                let url = secrets::read(file, "the connection string")?;
                let from = matrix_sdk_postgres::PostgresStoreConfig::new(url.as_str(), account)
                    .schema(&self.from_schema);
                Ok(RestoredDevice::Moved { from: Box::new(from) })
            }
            (true, None, None) => Err(Error::refused(
                "--same-device needs a proof that the backup has everything the device has done: \
                 --checkpoint N, kept elsewhere, or --from-url-file, where the device is now; nothing was \
                 changed",
            )),
        }
    }
}
