//! Another passphrase or key for an account.

use std::sync::Arc;

use tokio_postgres::types::Type;

use super::connection::{AdminConnection, Transaction};
use crate::{
    Access, DatabaseError, Error, OpenStoreError, PostgresStoreConfig,
    account::cipher::{Codec, Key, SealedCipher},
    crypto_store::{INSPECTED, Inspected, tables::ACCOUNT_DATA},
};

/// Seals an account's data key with another secret: that of `new`, a passphrase, a key or a key provider,
/// in place of that of `config`. Nothing else of `new` is used.
///
/// One row is replaced, if it is still the one that was read, after the new secret was seen to open it and
/// the account's own data. No other row changes, so a running bot is not affected; but its next start needs
/// the new secret. From then on the old one no longer opens this database. **It still opens dumps, base
/// backups and replicas from before**: the data key is the same. Delete those, if the old secret is known
/// to others.
///
/// # Errors
///
/// [`OpenStoreError::WrongPassphrase`] and the like when the old secret does not fit;
/// [`OpenStoreError::PlainWithSecret`] for an account that is not encrypted, which would need every row to
/// be written again; [`OpenStoreError::CipherChanged`] when the secret was changed in the meantime.
/// Nothing was changed then, unless the error says that the outcome of `COMMIT` is unknown.
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
    let (account_id, sealed) = admin.account(config, Access::default()).await?;
    if sealed.is_plain() {
        return Err(OpenStoreError::PlainWithSecret { account: account.clone() });
    }
    let codec = Arc::new(sealed.clone().open(account, config.secret.clone()).await?);
    let resealed = SealedCipher::seal(account, secret.clone(), codec.clone()).await?;
    let opened = resealed.clone().open(account, Some(secret)).await?;

    let transaction = admin.write().await?;
    if replace(&transaction, account, account_id, &sealed, &resealed).await? != resealed {
        return Err(Error::Internal("a row is not what was written").into());
    }
    check(&transaction, account_id, [&codec, &opened]).await?;
    transaction.commit().await
}

/// Compares and swaps the account's cipher; returns the stored one.
async fn replace(
    transaction: &Transaction<'_>,
    account: &str,
    account_id: i64,
    sealed: &SealedCipher,
    new: &SealedCipher,
) -> Result<SealedCipher, OpenStoreError> {
    // Silent when the driver logs its parameters.
    let [old_bytes, new_bytes] =
        [sealed, new].map(|cipher| cipher.bytes.as_deref().map(Key::stored));
    let sql = "UPDATE {schema}.accounts \
               SET secret_kind = $3, cipher = $4, cipher_written_by = $5 \
               WHERE id = $1 AND cipher = $2 RETURNING secret_kind, cipher, cipher_written_by";
    let params = [
        (&account_id as _, Type::INT8),
        (&old_bytes as _, Type::BYTEA),
        (&new.secret_kind as _, Type::INT2),
        (&new_bytes as _, Type::BYTEA),
        (&new.written_by as _, Type::INT2),
    ];
    let replaced = transaction.query(sql, &params).await;
    let replaced =
        replaced.map_err(|error| OpenStoreError::refused(error, "replacing the cipher"))?;
    let changed = || OpenStoreError::CipherChanged { account: account.to_owned() };
    let row = replaced.first().ok_or_else(changed)?;
    Ok(SealedCipher::of_row(row, 0).map_err(DatabaseError::from)?)
}

/// Whether the cipher that the new secret opens decodes what the old one does of the account's own data.
async fn check(
    transaction: &Transaction<'_>,
    account_id: i64,
    [old, new]: [&Codec; 2],
) -> Result<(), OpenStoreError> {
    let account_data =
        INSPECTED.iter().filter(|inspected| inspected.table.name == ACCOUNT_DATA.name);
    for Inspected { table, values, check, .. } in account_data {
        let sql =
            format!("SELECT item, {values} FROM {{schema}}.{} WHERE account_id = $1", table.name);
        for row in transaction.query(&sql, &[(&account_id, Type::INT8)]).await? {
            if check(old, &row).is_ok() {
                check(new, &row)?;
            }
        }
    }
    Ok(())
}
