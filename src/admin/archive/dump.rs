//! Writes an account's rows, from one snapshot.

use std::{
    io::{Read, Write},
    pin::pin,
};

use futures_util::TryStreamExt;
use tokio_postgres::types::Type;

use super::{
    BackedUpTable, Backup, BackupError, END, FORMAT, Header, LARGEST, read_end, read_frame,
    read_header, write_frame,
};
use crate::{
    Access, DatabaseError, OpenStoreError, PostgresStoreConfig,
    admin::{
        connection::{AdminConnection, Transaction},
        table_counts::TableCount,
    },
};

const ACCOUNT: &str = "\
SELECT secret_kind, cipher_written_by,
    to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US+00'), cipher,
    to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS+00')
FROM {schema}.accounts WHERE id = $1";

const LANES: &str = "SELECT lane, commits FROM {schema}.account_lanes WHERE account_id = $1";

/// Of the program's migrations, and of no others.
pub(super) const VERSIONS: &str =
    "SELECT part, max(version) FROM {schema}.schema_migrations GROUP BY part ORDER BY part";

const COLUMNS: &str = "\
SELECT attname::text FROM pg_attribute
WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped
  AND attname <> 'account_id' AND attgenerated = '' ORDER BY attnum";

/// Writes an account to `out`, in bounded memory: a consistent snapshot, also while a bot runs.
/// It reads only, needs neither passphrase nor key, and copies sealed rows as they are.
///
/// What is clear in the tables is clear in `out`: encrypt it. Owners, heartbeats, leases and rows that were
/// set aside are not part of it. Behind a PgBouncer older than 1.21 in transaction mode the named statement
/// of `COPY` may collide with another client's, and the backup fails: connect to the server itself.
///
/// # Errors
///
/// [`OpenStoreError::AccountNotFound`], what keeps a connection from being made, and what `out` fails with.
///
/// ```no_run
/// # async fn example() -> Result<(), matrix_sdk_postgres::admin::BackupError> {
/// use matrix_sdk_postgres::{PostgresStoreConfig, admin};
///
/// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot");
/// let mut encrypted = Vec::new(); // what writes to it encrypts
/// let backup = admin::backup(&config, &mut encrypted, &mut |_| {}).await?;
/// println!("{} commits", backup.commits);
/// # Ok(()) }
/// ```
pub async fn backup(
    config: &PostgresStoreConfig,
    out: &mut (dyn Write + Send),
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<Backup, BackupError> {
    let admin = AdminConnection::new(config)?;
    let (account_id, _) = admin.account(config, Access::ReadOnly).await?;
    let transaction = admin.read().await?;
    let header = header(&transaction, &config.account, account_id).await;
    let header = header.map_err(|error| OpenStoreError::refused(error, "reading the account"))?;
    write_frame(out, &serde_json::to_vec(&header).map_err(std::io::Error::from)?)?;
    for table in &header.backup.tables {
        let sql = format!(
            "COPY (SELECT {} FROM {{schema}}.{} WHERE account_id = {account_id}) TO STDOUT (FORMAT binary)",
            table.columns.join(", "),
            table.table,
        );
        let mut rows = pin!(transaction.copy_out(&sql).await?);
        while let Some(bytes) = rows.try_next().await.map_err(DatabaseError::from)? {
            progress(bytes.len() as u64);
            for frame in bytes.chunks(LARGEST) {
                write_frame(out, frame)?;
            }
        }
        write_frame(out, b"")?;
    }
    transaction.commit().await?;
    write_frame(out, END)?;
    out.flush()?;
    Ok(header.backup)
}

async fn header(
    transaction: &Transaction<'_>,
    account: &str,
    account_id: i64,
) -> Result<Header, DatabaseError> {
    let id = [(&account_id as _, Type::INT8)];
    let row = transaction.query_one(ACCOUNT, &id).await?;
    let mut lanes = Vec::new();
    for row in transaction.query(LANES, &id).await? {
        lanes.push((row.try_get(0)?, row.try_get::<_, i64>(1)?));
    }
    let mut schema = Vec::new();
    for row in transaction.query(VERSIONS, &[]).await? {
        schema.push((row.try_get(0)?, row.try_get(1)?));
    }
    let mut tables = Vec::new();
    for TableCount { table, rows } in transaction.count_rows(account_id).await? {
        let name = transaction.qualified(table);
        let mut columns = Vec::new();
        for row in transaction.query(COLUMNS, &[(&name, Type::TEXT)]).await? {
            columns.push(row.try_get(0)?);
        }
        tables.push(BackedUpTable { table: table.to_owned(), rows, columns });
    }
    let backup = Backup {
        format: FORMAT,
        account: account.to_owned(),
        made_at: row.try_get(4)?,
        commits: lanes.iter().map(|(_, commits)| commits.unsigned_abs()).sum(),
        schema,
        tables,
    };
    Ok(Header {
        backup,
        secret_kind: row.try_get(0)?,
        cipher_written_by: row.try_get(1)?,
        created_at: row.try_get(2)?,
        cipher: row.try_get(3)?,
        lanes,
    })
}

/// Reads a whole backup, and returns what it holds. It touches no database.
///
/// # Errors
///
/// [`BackupError::Damaged`] when it is not whole, [`BackupError::TooNew`], [`BackupError::Io`].
pub fn read_backup(input: &mut dyn Read) -> Result<Backup, BackupError> {
    let Header { backup, .. } = read_header(input)?;
    for _ in &backup.tables {
        while !read_frame(input)?.is_empty() {}
    }
    read_end(input)?;
    Ok(backup)
}
