//! Moves a crypto store of `matrix-sdk-sqlite` into an empty account.
//!
//! All of it but the Olm account is saved first, in transactions of bounded size, and compared. The Olm
//! account, with the sync token, is the last transaction: an import that was interrupted is no device yet,
//! and the same command goes on with it. What is not finished is marked with a custom value.

mod error;
#[cfg(test)]
mod fuzz;
mod item;
mod report;
mod rooms;
mod save;
mod snapshot;
mod source;
mod table;
mod target;
mod values;
mod verify;
mod walk;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    time::SystemTime,
};

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{Error as StoreError, PostgresCryptoStore, PostgresStoreConfig};
use ruma::OwnedUserId;
use tokio::task::yield_now;

use self::{
    error::Failure, item::Item, rooms::Rooms, save::Last, source::Source, table::Table,
    target::Stopped, values::Values, walk::Walk,
};
pub use self::{
    report::Report,
    target::{A_DEAD_RUN, Target},
};
use crate::{context::Context, outcome::Error, secrets::Secret};

const FILE: &str = "matrix-sdk-crypto.sqlite3";
/// About this number of room keys is compared as they would be exported.
const SAMPLE: u64 = 200;
/// Values that are queried at a time.
const CONCURRENT: usize = 32;

/// The copy of a file, ready to be read.
pub struct Opened {
    source: Source,
    pub changed_at: SystemTime,
}

/// Copies the file, or that in the folder, and opens the copy.
pub fn open(path: &Path, secret: Option<&Secret>, context: &Context) -> Result<Opened, Error> {
    let file = if path.is_dir() { path.join(FILE) } else { path.to_owned() };
    let mut bar = None;
    let taken = snapshot::take(&file, &mut |done, of| {
        bar.get_or_insert_with(|| context.progress("copying", Some(of))).set(done);
    })?;
    drop(bar);
    let source = source_of(taken.connection, file, secret)?;
    Ok(Opened { source, changed_at: taken.changed_at })
}

fn source_of(
    copy: rusqlite::Connection,
    file: PathBuf,
    secret: Option<&Secret>,
) -> Result<Source, Failure> {
    let version = Source::version_of(&copy, &file)?;
    let sealed = source::key_value(&copy, &file, "cipher")?;
    let values = Values::open(&file, sealed.as_deref(), secret)?;
    let rooms = Rooms::collect(&copy, &values, &file, secret)?;
    Source::new(copy, file, version, values, rooms)
}

impl Opened {
    /// Whose device it is.
    pub fn device(&self) -> (String, String) {
        let account = self.source.account();
        (account.user_id.to_string(), account.device_id.to_string())
    }

    pub fn is_encrypted(&self) -> bool {
        self.source.values.is_encrypted()
    }

    fn tables(&self) -> impl Iterator<Item = Table> + '_ {
        Table::ALL.into_iter().filter(|table| self.source.has(*table))
    }

    fn rows(&self) -> Result<u64, Failure> {
        self.tables().map(|table| self.source.count(table)).sum()
    }

    /// Decodes everything, and saves nothing.
    pub async fn check(&self, context: &Context) -> Result<Report, Error> {
        let bar = context.progress("reading", Some(self.rows()?));
        let mut tallies = BTreeMap::new();
        for table in self.tables() {
            let mut walk = Walk::new(&self.source, table);
            while let Some(items) = walk.next()? {
                bar.add(items.len() as u64);
                // Lets the runtime's other tasks run.
                yield_now().await;
            }
            tallies.insert(table, walk.tally);
        }
        Ok(Report::new(&self.source, tallies))
    }

    /// The account, opened. An account that is not empty is refused before anything is changed: opening would
    /// take it from its owner.
    pub async fn target(
        &self,
        config: PostgresStoreConfig,
        account: String,
    ) -> Result<Target, Error> {
        target::look(&config, &account, self.source.account()).await?;
        Target::open(config, account).await
    }

    /// Saves everything in the target, compares it, and makes the account usable.
    pub async fn import(&self, target: &Target, context: &Context) -> Result<(), Error> {
        target.begin(self.source.account()).await?;
        let moved = self.move_all(target, context).await;
        let wanted = moved.map_err(|stopped| match stopped {
            Stopped::Failed(error) => target.unfinished(error),
            Stopped::Differs(error) => error,
        })?;
        self.compare_last(target, &wanted, context).await.map_err(|stopped| match stopped {
            Stopped::Failed(error) => target.not_compared(error),
            Stopped::Differs(error) => error,
        })
    }

    /// Returns how many rows each table should have.
    async fn move_all(&self, target: &Target, context: &Context) -> Result<Counts, Stopped> {
        let mut last = Last::default();
        self.save(target, &mut last, context).await?;
        let wanted = self.compare(target, Phase::BeforeLast, context).await?;
        save::finish(target.store(), last).await?;
        Ok(wanted)
    }

    async fn compare_last(
        &self,
        target: &Target,
        wanted: &Counts,
        context: &Context,
    ) -> Result<(), Stopped> {
        self.compare(target, Phase::AfterLast, context).await?;
        target.compare_counts(wanted).await
    }

    async fn save(
        &self,
        target: &Target,
        last: &mut Last,
        context: &Context,
    ) -> Result<(), Stopped> {
        let bar = context.progress("saving", Some(self.rows()?));
        let version = self.source.own_value("backup_version_v1")?;
        let version: Option<String> = version.and_then(|v| self.source.values.message_pack(&v));
        for table in self.tables() {
            let mut walk = Walk::new(&self.source, table);
            while let Some(items) = walk.next()? {
                let count = items.len() as u64;
                save::save(target.store(), version.as_deref(), items, last).await?;
                bar.add(count);
            }
        }
        Ok(())
    }

    /// Reads back the values that can be compared in this phase; returns how many rows their tables have in
    /// the file.
    async fn compare(
        &self,
        target: &Target,
        phase: Phase,
        context: &Context,
    ) -> Result<Counts, Stopped> {
        let bar = context.progress("comparing", Some(self.rows()?));
        let reader = target.reader().await?;
        let mut wanted = Counts::new();
        for table in self.tables().filter(|table| phase.has(*table)) {
            let tracked = target::tracked_users(&reader, table).await?;
            let mut compared =
                Compared { every: (self.source.count(table)? / SAMPLE).max(1), seen: 0 };
            let mut walk = Walk::new(&self.source, table);
            while let Some(items) = walk.next()? {
                bar.add(items.len() as u64);
                for item in &items {
                    *wanted.entry(target::table_of(item)).or_insert(0) += 1;
                }
                let items: Vec<_> = items.into_iter().filter(|item| phase.compares(item)).collect();
                if !compared.are_same(&reader, &items, tracked.as_ref()).await? {
                    return Err(target.differs(table));
                }
            }
        }
        CryptoStore::close(&reader).await?;
        Ok(wanted)
    }
}

/// Rows by table of the database.
type Counts = BTreeMap<&'static str, u64>;

/// How far a table was compared.
struct Compared {
    /// Every n-th room key is compared as it would be exported.
    every: u64,
    seen: u64,
}

impl Compared {
    async fn are_same(
        &mut self,
        reader: &PostgresCryptoStore,
        items: &[Item],
        tracked: Option<&HashMap<OwnedUserId, bool>>,
    ) -> Result<bool, StoreError> {
        for chunk in items.chunks(CONCURRENT) {
            let same = chunk.iter().zip(self.seen..).map(|(item, at)| {
                target::is_same(reader, item, tracked, at.is_multiple_of(self.every))
            });
            if futures_util::future::try_join_all(same).await?.contains(&false) {
                return Ok(false);
            }
            self.seen += chunk.len() as u64;
        }
        Ok(true)
    }
}

/// What can be compared when.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The Olm account is not there yet.
    BeforeLast,
    AfterLast,
}

impl Phase {
    /// Whether anything of the table is compared, or counted.
    fn has(self, table: Table) -> bool {
        let has_last =
            matches!(table, Table::OlmSessions | Table::OutboundSessions | Table::KeyValues);
        self == Self::BeforeLast || has_last
    }

    fn compares(self, item: &Item) -> bool {
        // The store gives these out only when it has an account.
        let needs_account = matches!(
            item,
            Item::OlmSession(_)
                | Item::OutboundSession(_)
                | Item::OlmAccount(_)
                | Item::SyncToken(_)
        );
        needs_account == (self == Self::AfterLast)
    }
}
