//! Restores a backup into a database.

use std::io::Read;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::{
    error::SqlState,
    types::{ToSql, Type},
};

use super::{
    BackedUpTable, Backup, BackupError, Header, dump::VERSIONS, read_end, read_frame, read_header,
};
use crate::{
    DatabaseError, OpenStoreError, PostgresStoreConfig,
    account::{
        cipher::Key,
        find::{INSERT, INSERT_NEXT},
        ownership::{OWNER, OwnerRow},
    },
    admin::{
        connection::{AdminConnection, Transaction},
        migrate,
        owner::Claimed,
        quarantine::QUARANTINE,
        reset_device::reset,
    },
    crypto_store::{OLM_ACCOUNT, TABLES},
};

/// What is done with the device in a backup.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum RestoredDevice {
    /// It is left out, as [`reset_device`](crate::admin::reset_device) does: room keys, trust and the
    /// backup's key stay, and the bot logs in with a new device id. For the ratchets of a backup may be
    /// older than what the device has sent since, and an old ratchet must not be used again.
    New,

    /// It goes on. The caller knows from elsewhere how many commits the account has made
    /// ([`PostgresStores::commit_count`](crate::PostgresStores::commit_count)); a backup with fewer is
    /// refused. The account that it was made from must never be used again.
    Same {
        /// The number of commits.
        checkpoint: u64,
    },

    /// It goes on, and is removed from the account that has it now, in the same step: a backup that does not
    /// have all its commits is refused, and so is an account that is in use, or has no device any more. The
    /// account stays there without its device.
    Moved {
        /// The account that the backup was made from.
        from: Box<PostgresStoreConfig>,
    },
}

/// Restores a backup into an account that does not exist, or is empty, in one transaction and in bounded
/// memory. Passphrase and key are those that the account had. A schema that is missing is made; an older one has
/// to be migrated first, since programs may be running that work with it.
///
/// # Errors
///
/// [`BackupError`]: each reason has a variant. Nothing was changed, unless the error says that the outcome of
/// `COMMIT` is unknown, and but for [`BackupError::Moved`]. A move also removes the device from its source, and fails, if
/// the wait for the source's synchronous standby is cancelled: the error's text says how to go on.
///
/// ```no_run
/// # async fn example(mut decrypted: &[u8]) -> Result<(), matrix_sdk_postgres::admin::BackupError> {
/// use matrix_sdk_postgres::{PostgresStoreConfig, admin, admin::RestoredDevice};
///
/// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot");
/// admin::restore(&config, &mut decrypted, &RestoredDevice::New, &mut |_| {}).await?;
/// # Ok(()) }
/// ```
pub async fn restore(
    config: &PostgresStoreConfig,
    input: &mut (dyn Read + Send),
    device: &RestoredDevice,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<Backup, BackupError> {
    let header = read_header(input)?;
    let backup = &header.backup;
    check(config, backup, device)?;
    if let RestoredDevice::Moved { from } = device {
        check_source(from, backup).await?;
    }
    let admin = AdminConnection::new(config)?;
    make_schema(&admin, config, backup).await?;
    let transaction = match Claimed::lock(&admin, config).await {
        Ok(Claimed { transaction, account_id }) => {
            remove_empty(&transaction, &backup.account, account_id).await?;
            transaction
        }
        Err(OpenStoreError::AccountNotFound { .. }) => admin.write().await?,
        Err(error) => return Err(error.into()),
    };
    check_versions(&transaction, backup).await?;
    let account_id = make_account(&transaction, &header).await?;
    for table in &backup.tables {
        copy(&transaction, account_id, table, input, progress).await?;
    }
    read_end(input)?;
    match device {
        RestoredDevice::New => {
            let reset = reset(&transaction, account_id).await;
            reset.map_err(|error| OpenStoreError::refused(error, "resetting the device"))?;
        }
        RestoredDevice::Same { .. } => {}
        RestoredDevice::Moved { from } => {
            // Meanwhile this transaction is idle, however long the source's rows take.
            transaction.batch("SET LOCAL idle_in_transaction_session_timeout = 0").await?;
            let restored = olm_account(&transaction, account_id).await?;
            move_away(from, backup, restored).await?;
        }
    }
    match (device, transaction.commit().await) {
        (_, Err(error @ OpenStoreError::NotReplicated)) => Err(error.into()),
        (RestoredDevice::Moved { .. }, Err(error)) => {
            let (commits, source) = (header.backup.commits, Box::new(error));
            Err(BackupError::Moved { commits, source })
        }
        (_, committed) => Ok(committed.map(|()| header.backup)?),
    }
}

/// What needs no database.
fn check(
    config: &PostgresStoreConfig,
    backup: &Backup,
    device: &RestoredDevice,
) -> Result<(), BackupError> {
    if backup.account != config.account {
        let (found, wanted) = (backup.account.clone(), config.account.clone());
        return Err(BackupError::OtherAccount { found, wanted });
    }
    match device {
        RestoredDevice::Same { checkpoint } if backup.commits < *checkpoint => {
            Err(BackupError::Old { found: backup.commits, known: *checkpoint })
        }
        _ => Ok(()),
    }
}

/// Makes the schema, if there is none. All that can be refused without it is refused before.
async fn make_schema(
    admin: &AdminConnection,
    config: &PostgresStoreConfig,
    backup: &Backup,
) -> Result<(), BackupError> {
    let (status, _) = migrate::status(admin).await?;
    if status.parts.iter().any(|part| part.installed > 0) {
        return Ok(());
    }
    for part in &status.parts {
        check_version(part.part, part.required, backup)?;
    }
    check_tables(backup)?;
    match config.migrate().await {
        // The restoring transaction waits for the standby after it.
        Ok(()) | Err(OpenStoreError::NotReplicated) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn check_versions(transaction: &Transaction<'_>, backup: &Backup) -> Result<(), BackupError> {
    for row in transaction.query(VERSIONS, &[]).await? {
        let part: String = row.try_get(0).map_err(DatabaseError::from)?;
        let installed: i32 = row.try_get(1).map_err(DatabaseError::from)?;
        check_version(&part, installed, backup)?;
    }
    check_tables(backup)
}

fn check_version(part: &str, installed: i32, backup: &Backup) -> Result<(), BackupError> {
    let found = backup.schema.iter().find(|(name, _)| name == part);
    let found = found.map_or(0, |(_, version)| *version);
    match found == installed {
        true => Ok(()),
        false => Err(BackupError::OtherSchema { part: part.to_owned(), found, installed }),
    }
}

fn check_tables(backup: &Backup) -> Result<(), BackupError> {
    // Names come from the stream, and go into statements.
    let has_names = |table: &BackedUpTable| {
        !table.columns.is_empty() && table.columns.iter().all(|column| is_name(column))
    };
    let found = backup.tables.iter().map(|table| table.table.as_str());
    let is_known = found.eq(TABLES.iter().map(|table| table.name));
    match is_known && backup.tables.iter().all(has_names) {
        true => Ok(()),
        false => Err(BackupError::Damaged("it names other tables")),
    }
}

fn is_name(column: &str) -> bool {
    column.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

async fn make_account(transaction: &Transaction<'_>, header: &Header) -> Result<i64, BackupError> {
    let refused = |error| OpenStoreError::refused(error, "making the account");
    let account = &header.backup.account;
    if insert_account(transaction, header).await.map_err(refused)? == 0 {
        return Err(BackupError::NotEmpty { account: account.clone() });
    }
    let sql = "UPDATE {schema}.accounts SET created_at = $2::text::timestamptz WHERE name = $1 \
               RETURNING id";
    let params = [(account as _, Type::TEXT), (&header.created_at as _, Type::TEXT)];
    let row = transaction.query_one(sql, &params).await.map_err(refused)?;
    let account_id: i64 = row.try_get(0).map_err(DatabaseError::from)?;
    for (lane, commits) in &header.lanes {
        // The count goes on, so that checkpoints stay comparable.
        let sql = "\
INSERT INTO {schema}.account_lanes (account_id, lane, commits) VALUES ($1, $2, $3)";
        let params =
            [(&account_id as _, Type::INT8), (lane as _, Type::TEXT), (commits as _, Type::INT8)];
        transaction.execute(sql, &params).await.map_err(refused)?;
    }
    Ok(account_id)
}

/// Inserts the account's row as opening does, also if the id sequence is behind. None is inserted if another
/// process has created the account meanwhile.
async fn insert_account(
    transaction: &Transaction<'_>,
    header: &Header,
) -> Result<u64, DatabaseError> {
    // A `Key`, whose `Debug` prints no value when the driver logs parameters.
    let cipher = header.cipher.as_deref().map(Key::stored);
    let params: [&(dyn ToSql + Sync); 4] =
        [&header.backup.account, &header.secret_kind, &cipher, &header.cipher_written_by];
    transaction.batch("SAVEPOINT account").await?;
    match transaction.execute_sql(&INSERT, &params).await {
        Err(error) if error.sqlstate() == Some(SqlState::UNIQUE_VIOLATION.code()) => {
            transaction.batch("ROLLBACK TO SAVEPOINT account").await?;
            transaction.execute_sql(&INSERT_NEXT, &params).await
        }
        inserted => inserted,
    }
}

/// Removes the row of an account that has nothing.
async fn remove_empty(
    transaction: &Transaction<'_>,
    account: &str,
    account_id: i64,
) -> Result<(), BackupError> {
    let id = [(&account_id as _, Type::INT8)];
    let tables = TABLES.iter().map(|table| table.name);
    for table in tables.chain([QUARANTINE]) {
        let sql = format!("SELECT FROM {{schema}}.{table} WHERE account_id = $1 LIMIT 1");
        if !transaction.query(&sql, &id).await?.is_empty() {
            return Err(BackupError::NotEmpty { account: account.to_owned() });
        }
    }
    let deleted = transaction.execute("DELETE FROM {schema}.accounts WHERE id = $1", &id).await;
    deleted.map_err(|error| OpenStoreError::refused(error, "replacing the empty account"))?;
    Ok(())
}

/// Copies a table's rows, through a temporary table that has no `account_id`.
async fn copy(
    transaction: &Transaction<'_>,
    account_id: i64,
    table: &BackedUpTable,
    input: &mut (dyn Read + Send),
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<(), BackupError> {
    let (name, columns) = (&table.table, table.columns.join(", "));
    let refused = |error| OpenStoreError::refused(error, "restoring rows");
    let make = format!(
        "CREATE TEMPORARY TABLE restoring ON COMMIT DROP AS \
         SELECT {columns} FROM {{schema}}.{name} WITH NO DATA"
    );
    transaction.batch(&make).await.map_err(refused)?;
    let sink = transaction.copy_in("COPY pg_temp.restoring FROM STDIN (FORMAT binary)").await;
    let mut sink = Box::pin(sink.map_err(refused)?);
    loop {
        let bytes = read_frame(input)?;
        if bytes.is_empty() {
            break;
        }
        progress(bytes.len() as u64);
        sink.send(Bytes::from(bytes)).await.map_err(|error| refused(error.into()))?;
    }
    sink.as_mut().finish().await.map_err(|error| refused(error.into()))?;
    let insert = format!(
        "INSERT INTO {{schema}}.{name} (account_id, {columns}) SELECT $1, {columns} FROM pg_temp.restoring"
    );
    let rows = transaction.execute(&insert, &[(&account_id, Type::INT8)]).await.map_err(refused)?;
    if rows != table.rows {
        return Err(BackupError::Damaged("a table has another number of rows than it says"));
    }
    Ok(transaction.batch("DROP TABLE pg_temp.restoring").await?)
}

/// Fails where [`move_away`] would, and changes nothing; whether it is the same device is seen there only.
async fn check_source(from: &PostgresStoreConfig, backup: &Backup) -> Result<(), BackupError> {
    let from = from.clone().account(&backup.account);
    lock_source(&AdminConnection::new(&from)?, &from, backup).await.map(drop)
}

/// Locks the account that has the device now, and returns the device. Fails if it has none, or another count
/// of commits than the backup.
async fn lock_source<'a>(
    admin: &'a AdminConnection,
    from: &PostgresStoreConfig,
    backup: &Backup,
) -> Result<(Claimed<'a>, Vec<u8>), BackupError> {
    let claimed = Claimed::lock(admin, from).await?;
    let rows = claimed.transaction.query_sql(&OWNER, &[&claimed.account_id]).await?;
    let known = OwnerRow::parse(&rows).map_err(OpenStoreError::from)?.commits().unsigned_abs();
    if backup.commits != known {
        return Err(BackupError::Old { found: backup.commits, known });
    }
    // The removal of a device is no commit of the account.
    match olm_account(&claimed.transaction, claimed.account_id).await? {
        Some(device) => Ok((claimed, device)),
        None => Err(BackupError::NoDevice { account: backup.account.clone(), commits: known }),
    }
}

/// The Olm account as it is stored. A backup has the bytes of the account that it was made of; those of every
/// other save differ.
async fn olm_account(
    transaction: &Transaction<'_>,
    account_id: i64,
) -> Result<Option<Vec<u8>>, BackupError> {
    let (table, condition) = (OLM_ACCOUNT.table.name, OLM_ACCOUNT.condition());
    let sql = format!("SELECT data FROM {{schema}}.{table} WHERE account_id = $1{condition}");
    let rows = transaction.query(&sql, &[(&account_id, Type::INT8)]).await?;
    let row = rows.first();
    Ok(row.map(|row| row.try_get(0)).transpose().map_err(DatabaseError::from)?)
}

/// Takes the device from where it is now. Committed before the restored account is: rather nowhere than
/// twice.
async fn move_away(
    from: &PostgresStoreConfig,
    backup: &Backup,
    restored: Option<Vec<u8>>,
) -> Result<(), BackupError> {
    let from = from.clone().account(&backup.account);
    let admin = AdminConnection::new(&from)?;
    let (Claimed { transaction, account_id }, device) = lock_source(&admin, &from, backup).await?;
    if restored != Some(device) {
        return Err(BackupError::OtherDevice { account: backup.account.clone() });
    }
    let reset = reset(&transaction, account_id).await;
    reset
        .map_err(|error| OpenStoreError::refused(error, "removing the device from its account"))?;
    match transaction.commit().await {
        // Restored now, it would be in two places after a failover there.
        Err(OpenStoreError::NotReplicated) => Err(DatabaseError::permanent(format!(
            "the device was removed from where it was, but the wait for the synchronous standby there was \
             cancelled, so a failover may bring it back: nothing was restored; do not start it there, and see \
             to the standby. Then, if a failover has brought it back, run the same command again; else restore \
             the same backup with --same-device --checkpoint {}",
            backup.commits
        ))
        .into()),
        ended => Ok(ended?),
    }
}
