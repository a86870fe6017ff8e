//! `export-keys`: all room keys as the standard key file.

use std::{
    fs::File,
    io::{self, BufWriter, Seek},
    path::{Path, PathBuf},
};

use matrix_sdk_crypto::{olm::InboundGroupSession, store::CryptoStore};
use matrix_sdk_postgres::{PostgresCryptoStore, PostgresStores};
use ruma::OwnedRoomId;
use serde_json::json;
use zeroize::Zeroizing;

use crate::{
    context::Context,
    key_file::{KeyFileError, MOST_ROUNDS, ROUNDS, Seen, Unfinished, Writer, resume},
    new_file,
    outcome::{Error, Outcome},
    prompt, secrets,
};

/// Keys that are read from the database at a time.
const PAGE: usize = 500;

/// Write all room keys to a key file, which every Matrix client can import
///
/// The file is encrypted with a passphrase of its own. Until it is complete it is called FILE.partial;
/// when the command is interrupted and run again, it goes on there, and adds keys that came meanwhile. The bot may
/// go on, too.
#[derive(clap::Args)]
pub struct Args {
    /// The file to write; it must not exist
    file: PathBuf,
    #[command(flatten)]
    passphrase: Passphrase,
    /// Rounds of PBKDF2 that stretch the passphrase
    #[arg(long, default_value_t = ROUNDS, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_ROUNDS)))]
    rounds: u32,
}

/// What the key file is encrypted with.
#[derive(clap::Args)]
pub struct Passphrase {
    /// File with the key file's passphrase [env: KEYS_PASSPHRASE]
    #[arg(long, env = "KEYS_PASSPHRASE_FILE", value_name = "FILE")]
    keys_passphrase_file: Option<PathBuf>,
}

impl Passphrase {
    pub fn get(
        &self,
        ask: impl Fn(&str) -> Result<Zeroizing<String>, Error>,
    ) -> Result<Zeroizing<String>, Error> {
        let file = self.keys_passphrase_file.as_deref();
        secrets::file_passphrase(file, "KEYS_PASSPHRASE", "key file", ask)
    }
}

pub async fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let file = &args.file;
    if file.exists() {
        return Err(Error::refused(format!("{} exists: nothing was changed", file.display())));
    }
    let passphrase = args.passphrase.get(prompt::new_secret)?;
    let opened = |config| async move { PostgresStores::open(&config).await };
    let stores = context.unlocked(opened).await?;
    let partial = new_file::partial(file);
    let failed = |error: KeyFileError| failed(&partial, &error);
    let started = start(&partial, &passphrase, args.rounds).map_err(|error| match error {
        KeyFileError::Io(error) if error.kind() != io::ErrorKind::WouldBlock => {
            Error::failed(format!("{}: {error}", partial.display()))
        }
        error => failed(error),
    })?;
    let store = stores.crypto_store();
    let (writer, seen, resumed) = match started {
        Started::New(writer) => (*writer, Seen::default(), 0),
        Started::Unfinished(unfinished) => {
            check_account(&unfinished.seen, &store, &partial, context).await?;
            let resumed = unfinished.keys;
            let (writer, seen) = unfinished.go_on().map_err(failed)?;
            (writer, seen, resumed)
        }
    };
    let (writer, written) = write(writer, &seen, &store, &partial, context).await?;
    let keys = resumed + written;
    let finish = || {
        let written = writer.finish()?.into_inner().map_err(|error| error.into_error())?;
        Ok(written.sync_all()?)
    };
    finish().map_err(failed)?;
    new_file::complete(&partial, file, "export")?;
    stores.close().await?;
    let went_on = if resumed > 0 { format!(", {resumed} of them before") } else { String::new() };
    Ok(Outcome::done(
        format!("{keys} room keys in {}{went_on}\n", file.display()),
        json!({ "file": file.to_string_lossy(), "keys": keys, "resumed_from": resumed }),
    ))
}

/// A file that is begun, or one that an interrupted run has left.
enum Started {
    New(Box<Writer<BufWriter<File>>>),
    Unfinished(Box<Unfinished>),
}

fn start(partial: &Path, passphrase: &str, rounds: u32) -> Result<Started, KeyFileError> {
    let created = new_file::create(partial);
    if created.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
        let mut file = new_file::reopen(partial)?;
        if let Some(unfinished) = resume(&file, passphrase, rounds)? {
            return Ok(Started::Unfinished(Box::new(unfinished)));
        }
        // It was interrupted before its first line was written.
        file.set_len(0)?;
        file.rewind()?;
        return begin(file, passphrase, rounds);
    }
    begin(created?, passphrase, rounds)
}

fn begin(file: File, passphrase: &str, rounds: u32) -> Result<Started, KeyFileError> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(io::Error::from)?;
    let writer = Writer::new(BufWriter::new(file), passphrase, rounds, random)?;
    Ok(Started::New(Box::new(writer)))
}

/// The account's room keys, page by page.
struct Pages<'a> {
    store: &'a PostgresCryptoStore,
    last: Option<(OwnedRoomId, String)>,
}

impl<'a> Pages<'a> {
    fn of(store: &'a PostgresCryptoStore) -> Self {
        Self { store, last: None }
    }

    async fn next(&mut self) -> Result<Option<Vec<InboundGroupSession>>, Error> {
        let after = self.last.as_ref().map(|(room_id, session)| (&**room_id, session.as_str()));
        let page = self.store.room_keys_after(after, PAGE).await?;
        let Some(end) = page.last() else { return Ok(None) };
        self.last = Some((end.room_id().to_owned(), end.session_id().to_owned()));
        Ok(Some(page))
    }
}

fn is_in(seen: &Seen, key: &InboundGroupSession) -> bool {
    seen.has(key.room_id().as_str(), key.session_id())
}

/// Refuses to go on with a file that has keys of another account.
async fn check_account(
    seen: &Seen,
    store: &PostgresCryptoStore,
    partial: &Path,
    context: &Context,
) -> Result<(), Error> {
    let bar = context.progress("comparing", Some(seen.len() as u64));
    let (mut pages, mut found) = (Pages::of(store), 0);
    while found < seen.len() {
        let Some(page) = pages.next().await? else {
            return Err(Error::refused(format!(
                "{} has {} room keys that the account {:?} does not have: it was begun for another account, or \
                 they were deleted since. Delete the file; nothing was changed",
                partial.display(),
                seen.len() - found,
                context.account()?,
            )));
        };
        found += page.iter().filter(|key| is_in(seen, key)).count();
        bar.set(found as u64);
    }
    Ok(())
}

/// Writes the keys that the file does not have; returns how many.
async fn write(
    mut writer: Writer<BufWriter<File>>,
    seen: &Seen,
    store: &PostgresCryptoStore,
    partial: &Path,
    context: &Context,
) -> Result<(Writer<BufWriter<File>>, u64), Error> {
    let total = store.inbound_group_session_counts(None).await?.total;
    let bar = context.progress("exporting", Some(total as u64));
    let (mut pages, mut keys) = (Pages::of(store), 0);
    while let Some(page) = pages.next().await? {
        for session in page.iter().filter(|key| !is_in(seen, key)) {
            let pushed = writer.push(&session.export().await);
            pushed.map_err(|error| failed(partial, &error))?;
            keys += 1;
        }
        writer.flush().map_err(|error| failed(partial, &error))?;
        bar.add(page.len() as u64);
    }
    Ok((writer, keys))
}

fn failed(partial: &Path, error: &KeyFileError) -> Error {
    let file = partial.display();
    match error {
        KeyFileError::Mac | KeyFileError::Content | KeyFileError::Format => Error::failed(format!(
            "{file} is an export that was not finished, and not one with this passphrase: give that one, \
             or delete the file"
        )),
        KeyFileError::OtherRounds(_) => {
            Error::refused(format!("{file}: {error}; nothing was changed"))
        }
        KeyFileError::Io(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Error::failed(format!("{file} is being written by another run: nothing was changed"))
        }
        error => Error::failed(format!(
            "{file}: {error}. What was written stays; the same command goes on"
        )),
    }
}
