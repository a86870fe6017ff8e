//! Everything that can be wrong, checked at once.

mod accounts;
mod logging;
mod pooler;
mod schema;
mod server;
mod tls;

use super::{
    check::Check,
    connection::AdminConnection,
    verify::{VerifyOptions, verify},
};
use crate::{DatabaseError, OpenStoreError, PostgresStoreConfig};

const ROWS: &str = "rows decode";

/// What [`doctor`] is to know. Later versions may have more fields: end with `..Default::default()`.
#[derive(Debug, Clone)]
pub struct DoctorOptions {
    /// The account's commit count as it was last noted elsewhere: a smaller one in the database means that
    /// the database was rolled back. See [`commit_count`](crate::PostgresCryptoStore::commit_count).
    pub checkpoint: Option<u64>,
    /// How many rows of each table are opened and decoded, 1 000 by default.
    pub rows_per_table: u64,
    /// Whether the bot prepares statements by name, `true` by default: see
    /// [`PoolSettings::prepared_statements`](crate::PoolSettings::prepared_statements).
    pub prepared_statements: bool,
}

impl Default for DoctorOptions {
    fn default() -> Self {
        Self { checkpoint: None, rows_per_table: 1_000, prepared_statements: true }
    }
}

/// Looks at connection, TLS, server, pooler, log, clock, schema, rights, tables, accounts, owners and rows,
/// and says of each how it is and what to do. It reads only, also while a bot runs, and takes some
/// seconds.
///
/// What cannot be read, for want of a right or because the server goes away, is a problem.
/// Without a passphrase or key, and without an account of the configured name, what needs them is
/// [`NotChecked`](super::CheckStatus::NotChecked). [`check_device`](super::check_device) compares
/// the homeserver's view of the device with the account's.
///
/// ```no_run
/// # async fn example() {
/// use matrix_sdk_postgres::{PostgresStoreConfig, admin};
///
/// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot");
/// for check in admin::doctor(&config, &admin::DoctorOptions::default()).await {
///     println!("{:?} {}: {}", check.status, check.name, check.found);
/// }
/// # }
/// ```
pub async fn doctor(config: &PostgresStoreConfig, options: &DoctorOptions) -> Vec<Check> {
    const NAME: &str = "connection";
    let admin = match AdminConnection::new(config) {
        Ok(admin) => admin,
        Err(error) => return vec![connection_failed(&error)],
    };
    if let Err(error) = admin.connect().await {
        return vec![connection_failed(&error)];
    }
    let mut checks = vec![Check::ok(NAME, "the server answers, and lets the role in")];
    let mut add = |name, result: Result<Vec<Check>, OpenStoreError>| match result {
        Ok(found) => checks.extend(found),
        Err(error) => checks.push(failed(name, &error)),
    };
    add("TLS", tls::check(&admin, config).await);
    add("server", server::check(&admin).await);
    add("pooler", pooler::check(&admin, options.prepared_statements).await);
    add("server's log", logging::check(&admin).await);
    let schema = schema::check(&admin).await;
    add("schema", Ok(schema.checks));
    match schema.is_current {
        true => {
            add("accounts", accounts::check(&admin, config, options).await);
            add(ROWS, rows(config, options).await);
        }
        false => add("account", Ok(["account", ROWS].map(without_schema).into())),
    }
    if options.checkpoint.is_some() && !checks.iter().any(accounts::is_about_rollback) {
        checks.push(accounts::not_compared());
    }
    checks
}

fn connection_failed(error: &OpenStoreError) -> Check {
    let advice = "check address, port, user, password and firewall";
    let doc = "docs/troubleshooting.md#the-bot-cannot-connect";
    Check::problem("connection", error.to_string(), advice, doc)
}

/// A check that could not be made is a problem: the alert must not stay silent.
fn failed(name: &'static str, error: &OpenStoreError) -> Check {
    let found = format!("it could not be read: {error}");
    Check::problem(name, found, "see to the error, and run it again", error_doc(error))
}

fn error_doc(error: &OpenStoreError) -> &'static str {
    match error {
        OpenStoreError::PermissionDenied { .. } => "docs/operations.md#roles-and-grants",
        _ => "docs/operations.md#errors",
    }
}

fn without_schema(name: &'static str) -> Check {
    Check::not_checked(name, "the schema is not in order", "see to the schema, and run it again")
}

/// The first rows of each table.
async fn rows(
    config: &PostgresStoreConfig,
    options: &DoctorOptions,
) -> Result<Vec<Check>, OpenStoreError> {
    let limit = Some(options.rows_per_table);
    let options = VerifyOptions { rows_per_table: limit, ..Default::default() };
    let report = match verify(config, &options, |_| {}).await {
        Ok(report) => report,
        Err(error @ OpenStoreError::AccountNotFound { .. }) => {
            let advice = "see to the account's name";
            return Ok(vec![Check::not_checked(ROWS, error.to_string(), advice)]);
        }
        Err(error @ OpenStoreError::EncryptedWithoutSecret { .. }) => {
            let advice = "give its passphrase or key";
            return Ok(vec![Check::not_checked(ROWS, error.to_string(), advice)]);
        }
        Err(error) if is_about_secret(&error) => {
            let advice = "give the passphrase or key that the account was made with";
            let doc = "docs/troubleshooting.md#the-passphrase-does-not-fit";
            return Ok(vec![Check::problem(ROWS, error.to_string(), advice, doc)]);
        }
        Err(error) => return Err(error),
    };
    if report.is_clean() {
        let found = format!("{} rows looked at, all decode", report.rows());
        return Ok(vec![Check::ok(ROWS, found)]);
    }
    let corrupt = report.tables.iter().filter(|table| table.corrupt > 0);
    let corrupt: Vec<_> =
        corrupt.map(|table| format!("{} of {}", table.corrupt, table.table)).collect();
    let found = format!("{} rows looked at; corrupt: {}", report.rows(), corrupt.join(", "));
    let advice =
        "restore them from a backup, or set them aside: matrix-postgres verify --quarantine";
    let doc = "docs/troubleshooting.md#a-row-cannot-be-decoded";
    Ok(vec![Check::problem(ROWS, found, advice, doc)])
}

fn is_about_secret(error: &OpenStoreError) -> bool {
    use OpenStoreError::{
        KeyInsteadOfPassphrase, OtherKindOfSecret, PassphraseInsteadOfKey, PlainWithSecret,
        WrongKey, WrongPassphrase,
    };
    matches!(
        error,
        WrongPassphrase { .. }
            | WrongKey { .. }
            | KeyInsteadOfPassphrase { .. }
            | PassphraseInsteadOfKey { .. }
            | OtherKindOfSecret { .. }
            | PlainWithSecret { .. }
    )
}

/// A column of an answer.
fn get<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a tokio_postgres::Row,
    column: &str,
) -> Result<T, DatabaseError> {
    Ok(row.try_get(column)?)
}
