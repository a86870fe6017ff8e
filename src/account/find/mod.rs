//! Finds or creates the account's row at open, after checking the server and the schema.

mod probe;

use futures_util::future::try_join;
use tokio_postgres::types::Type;
use tracing::info;

use self::probe::{PROBE, Stored, probe};
use crate::{
    Access, DatabaseError, Error, OpenStoreError, PostgresStoreConfig,
    account::{
        cipher::{Key, OpenedCipher, SealedCipher},
        ownership::OwnerRow,
    },
    config::secret::Secret,
    postgres::{
        database::{Database, Param},
        migrations::Migrations,
        statement::Sql,
        transaction_connection::TransactionConnection,
    },
};

pub(crate) static INSERT: Sql = Sql::new(
    "accounts.insert",
    "
INSERT INTO {schema}.accounts (name, secret_kind, cipher, cipher_written_by)
SELECT $1, $2, $3, $4 FROM {schema}.require_begun() ON CONFLICT (name) DO NOTHING",
    &[Type::TEXT, Type::INT2, Type::BYTEA, Type::INT2],
);

/// For an id sequence that is behind the rows: logical replication and some restores do not copy
/// sequences. Advancing it requires a privilege that the role may lack.
pub(crate) static INSERT_NEXT: Sql = Sql::new(
    "accounts.insert_next",
    "
INSERT INTO {schema}.accounts (id, name, secret_kind, cipher, cipher_written_by)
OVERRIDING SYSTEM VALUE
SELECT (SELECT coalesce(max(id), 0) + 1 FROM {schema}.accounts), $1, $2, $3, $4
FROM {schema}.require_begun() ON CONFLICT (name) DO NOTHING",
    &[Type::TEXT, Type::INT2, Type::BYTEA, Type::INT2],
);

pub(super) const STATEMENTS: &[&Sql] = &[&PROBE, &INSERT, &INSERT_NEXT];

/// An account that was found.
pub(super) struct Found {
    pub(super) id: i64,
    pub(super) cipher: OpenedCipher,
    /// Its owner, if it was read with the account's row, or while the key was derived from a
    /// passphrase.
    pub(super) owner: Option<OwnerRow>,
}

/// Migrates the schema, finds or creates the account, and opens its cipher. When the account is
/// reopened, with the cipher from `before`, it is not created again, and no secret is needed.
pub(super) async fn find(
    database: &Database,
    config: &PostgresStoreConfig,
    parts: &[Migrations],
    before: Option<&OpenedCipher>,
) -> Result<Found, OpenStoreError> {
    // Retried, because a shared pool may return a connection that has died unnoticed.
    let find = || find_once(database, config, parts, before);
    database.retry().run("opening", OpenStoreError::is_retryable, find).await
}

async fn find_once(
    database: &Database,
    config: &PostgresStoreConfig,
    parts: &[Migrations],
    before: Option<&OpenedCipher>,
) -> Result<Found, OpenStoreError> {
    let name = &config.account;
    let exclusive = before.is_none() && matches!(config.access, Access::Exclusive(_));
    let derives_key = matches!(config.secret, Some(Secret::Passphrase(_)));
    // While a key is derived, the owner is read then.
    let found = look_up_once(database, config, parts, exclusive && !derives_key).await?;
    let Some(Stored { id, cipher, owner }) = found else {
        if config.access == Access::ReadOnly || before.is_some() {
            return Err(OpenStoreError::AccountNotFound { account: name.clone() });
        }
        return create_and_find(database, config, parts).await;
    };
    if let Some(before) = before {
        return Ok(Found { id, cipher: before.reopen(&cipher, name)?, owner: None });
    }
    let opened = OpenedCipher::open(cipher, name, config.secret.clone());
    if !exclusive || !derives_key {
        let owner = owner.and_then(OwnerRow::early);
        return Ok(Found { id, cipher: opened.await?, owner });
    }
    let owner = async { Ok(OwnerRow::read_early(database, id).await) };
    let (cipher, owner) = try_join(opened, owner).await?;
    Ok(Found { id, cipher, owner })
}

/// Creates the account's row, unless another process does so first.
async fn create_and_find(
    database: &Database,
    config: &PostgresStoreConfig,
    parts: &[Migrations],
) -> Result<Found, OpenStoreError> {
    let (name, secret) = (&config.account, &config.secret);
    // Derived before the row is inserted, so that no process finds an account without its cipher.
    let created = OpenedCipher::create(name, secret.clone()).await?;
    insert(database, name, &created.sealed).await.map_err(|error| match error {
        Error::Database(error) => OpenStoreError::refused(error, "creating the account"),
        error => error.into(),
    })?;
    let found = look_up_once(database, config, parts, true).await?;
    let Stored { id, cipher, owner } = found.ok_or_else(|| {
        OpenStoreError::from(DatabaseError::broken("the account's row has disappeared"))
    })?;
    let owner = owner.and_then(OwnerRow::early);
    // A key provider's is opened in any case: that shows that it can unwrap what it has wrapped.
    let is_provided = matches!(secret, Some(Secret::Provider(_)));
    let cipher = match cipher == created.sealed && !is_provided {
        true => created,
        false => OpenedCipher::open(cipher, name, secret.clone()).await?,
    };
    Ok(Found { id, cipher, owner })
}

/// The account's row, if there is one, after the checks that opening makes of server and schema. The
/// account is not created.
pub(crate) async fn look_up(
    database: &Database,
    config: &PostgresStoreConfig,
    parts: &[Migrations],
) -> Result<Option<(i64, SealedCipher)>, OpenStoreError> {
    let look_up = || look_up_once(database, config, parts, false);
    let found =
        database.retry().run("looking the account up", OpenStoreError::is_retryable, look_up).await;
    Ok(found?.map(|Stored { id, cipher, .. }| (id, cipher)))
}

async fn look_up_once(
    database: &Database,
    config: &PostgresStoreConfig,
    parts: &[Migrations],
    with_owner: bool,
) -> Result<Option<Stored>, OpenStoreError> {
    let mut connection = TransactionConnection::new(database.connect().await?);
    let found = probe(connection.get_mut()?, database, config, parts, with_owner).await;
    // After an error there may be answers that have not arrived.
    if found.is_ok() {
        connection.release();
    }
    found
}

/// Inserts the account's row, if there is none with this name.
async fn insert(database: &Database, name: &str, cipher: &SealedCipher) -> Result<(), Error> {
    // A `Key`, whose `Debug` prints no value when the driver logs parameters.
    let bytes = cipher.bytes.as_deref().map(Key::stored);
    let params: [Param<'_>; 4] = [&name, &cipher.secret_kind, &bytes, &cipher.written_by];
    match database.write_autocommit(&INSERT, &params).await {
        Ok(_) => {
            info!(account = name, "an account of this name was created");
            return Ok(());
        }
        Err(error) if error.is_unique_violation() => {}
        Err(error) => return Err(error),
    }
    // Of concurrent inserts with the same id one succeeds, and the others are retried.
    let insert = || database.write_autocommit(&INSERT_NEXT, &params);
    database.retry().run(INSERT_NEXT.name, Error::is_unique_violation, insert).await?;
    Ok(())
}
