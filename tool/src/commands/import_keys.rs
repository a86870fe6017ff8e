//! `import-keys`: room keys of a key file.

use std::{
    collections::HashSet,
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use matrix_sdk_crypto::{OlmMachine, olm::ExportedRoomKey, store::CryptoStore};
use matrix_sdk_postgres::{
    OwnershipSettings, PostgresCryptoStore, PostgresStoreConfig, PostgresStores, Takeover, admin,
};
use serde_json::json;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::export_keys::Passphrase;
use crate::{
    context::Context,
    import_sqlite::A_DEAD_RUN,
    key_file::{KeyFileError, Reader, each, verify},
    outcome::{Error, Outcome},
    prompt,
};

/// Keys that are saved at a time.
const CHUNK: usize = 500;

/// Add the room keys of a key file to an account; of two copies of a key the better one stays
///
/// The better one is known from an earlier message on, or of a sender who is better known: the SDK's own
/// rule. The file's passphrase and checksum are checked before anything is saved. An import that was
/// interrupted is run again: keys that are there already are left as they are. The bot must be stopped.
#[derive(clap::Args)]
pub struct Args {
    /// The key file, as Element, other clients and export-keys write it
    file: PathBuf,
    #[command(flatten)]
    passphrase: Passphrase,
}

const SAVED_STAYS: &str = "What was saved stays; run the same command again";

/// How many of the file's keys were imported.
#[derive(Default)]
struct Counts {
    total: u64,
    imported: u64,
    undecodable: u64,
}

pub async fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let file = args.file.clone();
    let opened = File::open(&file).map_err(|error| failed(&file, &error.into()))?;
    let passphrase = args.passphrase.get(prompt::secret)?;
    let spinner = context.progress("checking", None);
    let verified = tokio::task::spawn_blocking({
        let passphrase = passphrase.clone();
        move || verify(BufReader::new(opened), &passphrase)
    });
    let verified = verified.await.map_err(|_| failed(&file, &KeyFileError::Content))?;
    verified.map_err(|error| failed(&file, &error))?;
    drop(spinner);

    // Read-only, which creates no account: a misspelt name would become one.
    let existing =
        context.unlocked(|config| async move { PostgresStores::open(&config).await }).await?;
    let device = existing.crypto_store().load_account().await;
    existing.close().await?;
    device?.ok_or_else(no_device)?;

    let open = |config: PostgresStoreConfig| async move {
        // Opening would create the account.
        admin::count_account(&config).await?;
        let owner = OwnershipSettings {
            takeover: Takeover::WaitUntilFree(A_DEAD_RUN),
            label: "matrix-postgres import-keys".to_owned(),
            ..Default::default()
        };
        PostgresStores::open(&config.access(owner)).await
    };
    let stores = context.unlocked(open).await?;
    let imported = import(&stores.crypto_store(), &file, passphrase, context).await;
    // Also after an error, so that the same command can be run again at once.
    let closed = stores.close().await;
    let counts = imported?;
    closed?;
    let Counts { total, imported, undecodable } = counts;
    let known = total - imported - undecodable;
    let mut text =
        format!("{total} room keys: {imported} added or improved, {known} known already\n");
    if undecodable > 0 {
        text.push_str(&format!("{undecodable} cannot be decoded, and were left out\n"));
    }
    let json = json!({
        "keys": total, "imported": imported, "known": known, "undecodable": undecodable,
    });
    Ok(Outcome::done(text, json).in_order(undecodable == 0))
}

/// The SDK's machine, which knows how keys are merged.
async fn machine(store: &PostgresCryptoStore) -> Result<OlmMachine, Error> {
    let account = store.load_account().await?.ok_or_else(no_device)?;
    let (user_id, device_id) = (account.user_id().to_owned(), account.device_id().to_owned());
    Ok(OlmMachine::with_store(&user_id, &device_id, store.clone(), None).await?)
}

fn no_device() -> Error {
    Error::failed("the account has no device yet: start the bot once, then import the keys")
}

async fn import(
    store: &PostgresCryptoStore,
    file: &Path,
    passphrase: Zeroizing<String>,
    context: &Context,
) -> Result<Counts, Error> {
    let machine = machine(store).await?;
    let bar = context.progress("importing", None);
    let (sender, mut chunks) = mpsc::channel(2);
    let reading = tokio::task::spawn_blocking({
        let file = file.to_owned();
        move || read(&file, &passphrase, &sender)
    });
    let mut counts = Counts::default();
    while let Some(chunk) = chunks.recv().await {
        let count = chunk.len();
        let result = machine.store().import_exported_room_keys(chunk, |_, _| {}).await;
        let result = result.map_err(|error| {
            let Error { message, exit } = Error::from(error);
            let message = format!("{message}. {SAVED_STAYS}");
            Error { message, exit }
        })?;
        counts.imported += result.imported_count as u64;
        // Of an algorithm that the SDK does not know, for instance.
        counts.undecodable += count.saturating_sub(result.total_count) as u64;
        bar.add(count as u64);
    }
    let read = reading.await.unwrap_or(Err(KeyFileError::Content));
    let (total, undecodable) = read.map_err(|error| match counts.imported {
        0 => failed(file, &error),
        _ => Error::failed(format!("{}: {error}. {SAVED_STAYS}", file.display())),
    })?;
    Ok(Counts { total, undecodable: counts.undecodable + undecodable, ..counts })
}

/// Sends the keys in chunks. How many there were, and how many cannot be decoded.
fn read(
    file: &Path,
    passphrase: &str,
    chunks: &mpsc::Sender<Vec<ExportedRoomKey>>,
) -> Result<(u64, u64), KeyFileError> {
    let reader = Reader::new(BufReader::new(File::open(file)?), passphrase)?;
    let (mut total, mut undecodable, mut chunk) = (0, 0, Vec::new());
    let mut ids = HashSet::new();
    each(BufReader::new(reader), |key| {
        total += 1;
        let Ok(key) = serde_json::from_str::<ExportedRoomKey>(key.get()) else {
            undecodable += 1;
            return Ok(());
        };
        // A copy of a key is compared with what is saved, not with what is in the same chunk.
        let is_new = ids.insert((key.room_id.clone(), key.session_id.clone()));
        if !is_new || chunk.len() == CHUNK {
            chunks.blocking_send(std::mem::take(&mut chunk)).map_err(|_| ())?;
            ids.clear();
            ids.insert((key.room_id.clone(), key.session_id.clone()));
        }
        chunk.push(key);
        Ok(())
    })?;
    // The receiver is dropped after an error, which is reported there.
    let _ = chunks.blocking_send(chunk);
    Ok((total, undecodable))
}

fn failed(file: &Path, error: &KeyFileError) -> Error {
    Error::failed(format!("{}: {error}; nothing was changed", file.display()))
}
