//! `rekey`: another passphrase or key.

use std::path::PathBuf;

use matrix_sdk_postgres::{PostgresStoreConfig, admin};
use serde_json::json;

use crate::{
    context::Context,
    outcome::{Error, Outcome},
    prompt,
    secrets::{self, Secret},
};

/// Give an account another passphrase or key
///
/// The account's data key is sealed with the new secret: one row, checked before it is committed. A running
/// bot is not affected; its next start needs the new secret. The old one no longer opens this database, but it
/// still opens dumps and base backups from before. An account that is not encrypted cannot be given a secret.
///
/// The new secret comes from NEW_STORE_PASSPHRASE, NEW_STORE_KEY, a file, or a prompt.
#[derive(clap::Args)]
pub struct Args {
    /// File that holds the new passphrase
    #[arg(long, env = "NEW_STORE_PASSPHRASE_FILE", value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    /// File that holds the new key: 64 hexadecimal digits, base64, or 32 bytes
    #[arg(long, env = "NEW_STORE_KEY_FILE", value_name = "FILE")]
    new_key_file: Option<PathBuf>,
}

pub async fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let account = context.account()?;
    let new = new_secret(args, context.database_of_account()?)?;
    context.confirm(&format!(
        "This seals the account {account:?} with the new secret. Its bot needs that at its next start; \
         the old secret opens only backups from before."
    ))?;
    let rekey = |config| {
        let new = &new;
        async move {
            let _progress = context.progress("sealing", None);
            admin::rekey(&config, new).await
        }
    };
    context.unlocked(rekey).await?;
    let text = format!(
        "the account {account:?} has its new secret; the old one no longer opens this database\n\
         it still opens backups from before: keep it with them, or delete them\n"
    );
    Ok(Outcome::done(text, json!({ "account": account, "rekeyed": true })))
}

fn new_secret(args: &Args, config: PostgresStoreConfig) -> Result<PostgresStoreConfig, Error> {
    let file = args.new_passphrase_file.as_deref();
    let passphrase = secrets::secret(file, "NEW_STORE_PASSPHRASE", "the new passphrase")?;
    let key = secrets::key_bytes(args.new_key_file.as_deref(), "NEW_STORE_KEY", "the new key")?;
    match Secret::one_of(passphrase, key, "a new passphrase and a new key")? {
        Some(secret) => Ok(secret.set(config)),
        None => Ok(config.passphrase(Some(&prompt::new_secret("New passphrase")?))),
    }
}
