//! Another passphrase or key for an account.

use std::sync::Arc;

use tokio_postgres::types::Type;

use super::connection::{AdminConnection, Transaction};
use crate::{
    DatabaseError, Error, OpenStoreError, PostgresStoreConfig,
    account::cipher::{Codec, Key, SealedCipher},
    crypto_store::{INSPECTED, Inspected},
};

/// Seals an account's data key with another secret: that of `new`, a passphrase, a key or a key provider,
/// in place of that of `config`. Nothing else of `new` is used.
///
/// One row is replaced, if it is still the one that was read, after the new secret was seen to open it and
/// the account's own data. No other row changes, so a bot that is running goes on; but its next start needs
/// the new secret. From then on the old one no longer opens this database. **It still opens dumps, base
/// backups and replicas from before**: the data key is the same. Delete those, if the old secret is known
/// to others.
///
/// # Errors
///
/// [`OpenStoreError::WrongPassphrase`] and the like when the old secret does not fit;
/// [`OpenStoreError::PlainWithSecret`] for an account that is not encrypted, which would need every row to
/// be written anew; [`OpenStoreError::CipherChanged`] when somebody else was faster. Then nothing was
/// changed.
///
/// ```no_run
/// # async fn example() -> Result<(), matrix_sdk_postgres::OpenStoreError> {
/// use matrix_sdk_postgres::{PostgresStoreConfig, admin};
///
/// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot");
/// let (old, new) = (config.clone().passphrase(Some("old")), config.passphrase(Some("new")));
/// admin::rekey(&old, &new).await?;
/// # Ok(()) }
/// ```
pub async fn rekey(
    config: &PostgresStoreConfig,
    new: &PostgresStoreConfig,
) -> Result<(), OpenStoreError> {
    config.validate()?;
    new.validate()?;
    let account = &config.account;
    let Some(secret) = new.secret.clone() else {
        return Err(OpenStoreError::InvalidConfig("no new passphrase or key is given".to_owned()));
    };
    let admin = AdminConnection::new(config)?;
    let (account_id, sealed) = read(&admin.read().await?, account).await?;
    if sealed.is_plain() {
        return Err(OpenStoreError::PlainWithSecret { account: account.clone() });
    }
    let codec = Arc::new(sealed.clone().open(account, config.secret.clone()).await?);
    let anew = SealedCipher::seal(account, secret.clone(), codec.clone()).await?;
    let opened = anew.clone().open(account, Some(secret)).await?;

    let transaction = admin.write().await?;
    replace(&transaction, account, account_id, &sealed, &anew).await?;
    let (_, stored) = read(&transaction, account).await?;
    if stored != anew {
        return Err(Error::Internal("a row is not what was written").into());
    }
    check(&transaction, account_id, [&codec, &opened]).await?;
    Ok(transaction.commit().await?)
}

async fn read(
    transaction: &Transaction<'_>,
    account: &str,
) -> Result<(i64, SealedCipher), OpenStoreError> {
    let sql = "SELECT id, secret_kind, cipher, cipher_written_by FROM {schema}.accounts \
               WHERE name = $1";
    let rows = transaction.query(sql, &[(&account, Type::TEXT)]).await;
    let rows = rows.map_err(|error| OpenStoreError::refused(error, "reading the account"))?;
    let not_found = || OpenStoreError::AccountNotFound { account: account.to_owned() };
    let row = rows.first().ok_or_else(not_found)?;
    let sealed = (|| {
        Ok(SealedCipher {
            secret_kind: row.try_get(1)?,
            bytes: row.try_get(2)?,
            written_by: row.try_get(3)?,
        })
    })();
    let id = row.try_get(0).map_err(DatabaseError::from)?;
    Ok((id, sealed.map_err(|error: tokio_postgres::Error| DatabaseError::from(error))?))
}

/// Compares and swaps the account's cipher.
async fn replace(
    transaction: &Transaction<'_>,
    account: &str,
    account_id: i64,
    sealed: &SealedCipher,
    anew: &SealedCipher,
) -> Result<(), OpenStoreError> {
    // Silent when the driver logs its parameters.
    let [old, new] = [sealed, anew].map(|cipher| cipher.bytes.as_deref().map(Key::stored));
    let sql = "UPDATE {schema}.accounts \
               SET secret_kind = $3, cipher = $4, cipher_written_by = $5 \
               WHERE id = $1 AND cipher = $2";
    let params = [
        (&account_id as _, Type::INT8),
        (&old as _, Type::BYTEA),
        (&anew.secret_kind as _, Type::INT2),
        (&new as _, Type::BYTEA),
        (&anew.written_by as _, Type::INT2),
    ];
    let replaced = transaction.execute(sql, &params).await;
    match replaced.map_err(|error| OpenStoreError::refused(error, "replacing the cipher"))? {
        1 => Ok(()),
        _ => Err(OpenStoreError::CipherChanged { account: account.to_owned() }),
    }
}

/// Whether the cipher that the new secret opens decodes what the old one does of the account's own data.
async fn check(
    transaction: &Transaction<'_>,
    account_id: i64,
    [old, new]: [&Codec; 2],
) -> Result<(), OpenStoreError> {
    let account_data = INSPECTED.iter().filter(|inspected| inspected.table == "account_data");
    for Inspected { table, values, check, .. } in account_data {
        let sql = format!("SELECT item, {values} FROM {{schema}}.{table} WHERE account_id = $1");
        for row in transaction.query(&sql, &[(&account_id, Type::INT8)]).await? {
            if check(old, &row).is_ok() {
                check(new, &row)?;
            }
        }
    }
    Ok(())
}
