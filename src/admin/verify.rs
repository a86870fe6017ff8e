//! Opens and decodes every row.

use std::collections::BTreeMap;

use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio_postgres::{Row, types::Type};

use super::{connection::Param, quarantine, unlock::Unlocked};
use crate::{
    Access, DatabaseError, Error, OpenStoreError, PostgresStoreConfig,
    crypto_store::{INSPECTED, Inspected},
    postgres::{cell::Cells, statement::Column},
};

/// Rows that are read with one statement.
const PAGE: u64 = 1_000;

/// How [`verify`] works. Later versions may have more fields: end with `..Default::default()`.
#[derive(Debug, Clone, Default)]
pub struct VerifyOptions {
    /// Whether rows that do not decode are set aside, into the table `quarantined_rows`; `false` by default.
    ///
    /// Rows of `account_data` never are: without its Olm account a bot would begin a new device under the
    /// old one's id. The rows of up to 1 000 are set aside in one transaction, which raises the maintenance
    /// counter, so that a running bot forgets what it has cached of them. [`put_back`](super::put_back) undoes it.
    pub quarantine: bool,
    /// At most this number of rows of each table, in the order of their primary keys; all by default.
    pub rows_per_table: Option<u64>,
}

/// What [`verify`] found.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// The account's name.
    pub account: String,
    /// The tables, those without rows among them, as far as they were looked at.
    pub tables: Vec<VerifiedTable>,
    /// `false` if it ended early: the last rows were set aside on this server, but the wait for its synchronous
    /// standby was cancelled (see [`OpenStoreError::NotReplicated`]), so a failover may put them back. What comes
    /// behind them was not looked at: run it again once the standby is in order.
    pub is_complete: bool,
}

/// What [`verify`] found in a table.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct VerifiedTable {
    /// The table's name.
    pub table: &'static str,
    /// How many rows were opened and decoded, or could not be.
    pub rows: u64,
    /// How many could not be.
    pub corrupt: u64,
    /// How many of them were set aside.
    pub quarantined: u64,
    /// Why they could not be, and how often.
    pub reasons: BTreeMap<&'static str, u64>,
}

impl VerifyReport {
    /// Whether every row decodes, or was set aside; `false` if not all were looked at.
    pub fn is_clean(&self) -> bool {
        self.is_complete && self.tables.iter().all(|table| table.corrupt == table.quarantined)
    }

    /// How many rows were looked at.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.rows).sum()
    }
}

/// Opens and decodes every row of an account, page by page, in bounded memory.
///
/// It needs the account's passphrase or key. It reads only, unless
/// [`quarantine`](VerifyOptions::quarantine) is set, and works on a standby and while a bot runs: a row
/// that the bot writes meanwhile is seen as it was or as it is. `progress` is called after each page, with
/// the number of its rows.
///
/// # Errors
///
/// What keeps the account from being opened. Rows that do not decode are no error, they are the result, and
/// so is [`OpenStoreError::NotReplicated`]: see [`is_complete`](VerifyReport::is_complete).
///
/// ```no_run
/// # async fn example() -> Result<(), matrix_sdk_postgres::OpenStoreError> {
/// use matrix_sdk_postgres::{PostgresStoreConfig, admin};
///
/// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
///     .passphrase(Some("correct horse battery staple"));
/// let report = admin::verify(&config, &admin::VerifyOptions::default(), |_| {}).await?;
/// assert!(report.is_clean(), "{:?}", report.tables);
/// # Ok(()) }
/// ```
pub async fn verify(
    config: &PostgresStoreConfig,
    options: &VerifyOptions,
    mut progress: impl FnMut(u64),
) -> Result<VerifyReport, OpenStoreError> {
    let access = if options.quarantine { Access::default() } else { Access::ReadOnly };
    let unlocked = Unlocked::open(config, access).await?;
    let (mut tables, mut is_complete) = (Vec::new(), true);
    for inspected in &INSPECTED {
        let mut found = Found::new(inspected, options);
        let read = found.read(&unlocked, &mut progress).await;
        tables.push(found.report);
        match read {
            Ok(()) => {}
            // What was set aside must be known.
            Err(OpenStoreError::NotReplicated) => {
                is_complete = false;
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(VerifyReport { account: config.account.clone(), tables, is_complete })
}

/// A row that does not decode: as little of it as finds it again, unchanged.
pub(super) struct CorruptRow {
    pub(super) key: Cells,
    /// SHA-256 of `data`, since the row may be written again meanwhile.
    pub(super) digest: Vec<u8>,
    pub(super) reason: &'static str,
}

struct Found {
    inspected: &'static Inspected,
    limit: u64,
    sets_aside: bool,
    report: VerifiedTable,
    /// Of the page, if they are set aside.
    corrupt: Vec<CorruptRow>,
}

impl Found {
    fn new(inspected: &'static Inspected, options: &VerifyOptions) -> Self {
        let report = VerifiedTable {
            table: inspected.table.name,
            rows: 0,
            corrupt: 0,
            quarantined: 0,
            reasons: BTreeMap::new(),
        };
        let limit = options.rows_per_table.unwrap_or(u64::MAX);
        let sets_aside = options.quarantine && inspected.can_be_spared;
        Self { inspected, limit, sets_aside, report, corrupt: Vec::new() }
    }

    async fn read(
        &mut self,
        unlocked: &Unlocked,
        progress: &mut impl FnMut(u64),
    ) -> Result<(), OpenStoreError> {
        let mut after = None;
        while self.report.rows < self.limit {
            let wanted = (self.limit - self.report.rows).min(PAGE);
            let rows = self.page(unlocked, after.as_ref(), wanted).await?;
            for row in &rows {
                self.check(unlocked, row)?;
            }
            let read = rows.len() as u64;
            self.report.rows += read;
            self.set_aside(unlocked).await?;
            progress(read);
            let Some(last) = rows.last().filter(|_| read == wanted) else { break };
            after = Some(key(self.inspected, last)?);
            // Decoding keeps the thread from others.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn set_aside(&mut self, unlocked: &Unlocked) -> Result<(), OpenStoreError> {
        if !self.corrupt.is_empty() {
            let moved = &mut self.report.quarantined;
            quarantine::set_aside(unlocked, self.inspected, &self.corrupt, moved).await?;
            self.corrupt.clear();
        }
        Ok(())
    }

    /// The rows behind this key, in a transaction of their own: a long one would hold back vacuum.
    async fn page(
        &self,
        unlocked: &Unlocked,
        after: Option<&Cells>,
        count: u64,
    ) -> Result<Vec<Row>, OpenStoreError> {
        let Inspected { table, key, values, .. } = *self.inspected;
        let mut params: Vec<Param<'_>> = vec![(&unlocked.account_id, Type::INT8)];
        let behind = match after {
            Some(after) => {
                let cells = after.iter().zip(types(self.inspected));
                params.extend(cells.map(|(cell, ty)| (cell as _, ty)));
                format!(" AND ({}) > ({})", names(key), numbers(2, key.len()))
            }
            None => String::new(),
        };
        let order = if key.is_empty() { "1".to_owned() } else { names(key) };
        let columns = [&*names(key), values].join(if key.is_empty() { "" } else { ", " });
        let sql = format!(
            "SELECT {columns} FROM {{schema}}.{} \
             WHERE account_id = $1{behind} ORDER BY {order} LIMIT {count}",
            table.name
        );
        let query = || async {
            let transaction = unlocked.admin.read_once().await?;
            let rows = transaction.query(&sql, &params).await;
            let rows = rows.map_err(|error| OpenStoreError::refused(error, "reading a table"))?;
            transaction.commit().await?;
            Ok(rows)
        };
        let retry = unlocked.admin.database.retry();
        retry.run("verifying", OpenStoreError::is_retryable, query).await
    }

    fn check(&mut self, unlocked: &Unlocked, row: &Row) -> Result<(), OpenStoreError> {
        let reason = match (self.inspected.check)(&unlocked.codec, row) {
            Ok(()) => return Ok(()),
            Err(Error::CorruptRow { reason, .. }) => reason,
            Err(error) => return Err(error.into()),
        };
        self.report.corrupt += 1;
        *self.report.reasons.entry(reason).or_default() += 1;
        if !self.sets_aside {
            return Ok(());
        }
        let data: &[u8] = row.try_get(self.inspected.key.len()).map_err(DatabaseError::from)?;
        let digest = Sha256::digest(data).to_vec();
        self.corrupt.push(CorruptRow { key: key(self.inspected, row)?, digest, reason });
        Ok(())
    }
}

/// The key columns of a row that was read.
fn key(inspected: &Inspected, row: &Row) -> Result<Cells, OpenStoreError> {
    Ok(Cells::of(row, inspected.table.name)?.split_at(inspected.key.len()).0)
}

pub(super) fn types(inspected: &Inspected) -> impl Iterator<Item = Type> {
    inspected.key.iter().map(|Column(_, ty)| ty.scalar())
}

fn names(key: &[Column]) -> String {
    key.iter().map(|Column(name, _)| *name).collect::<Vec<_>>().join(", ")
}

fn numbers(from: usize, count: usize) -> String {
    (from..from + count).map(|number| format!("${number}")).collect::<Vec<_>>().join(", ")
}
