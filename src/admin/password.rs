//! Whether a connection string holds a password.

use crate::{OpenStoreError, config::conninfo::ConnInfo};

/// Whether a connection string holds a password, in any of the forms that
/// [`PostgresStoreConfig::url`](crate::PostgresStoreConfig::url) accepts: such a string must not be on a
/// command line or in a log.
///
/// # Errors
///
/// [`OpenStoreError::InvalidConfig`], which does not quote the string.
///
/// ```
/// use matrix_sdk_postgres::admin::has_password;
///
/// assert!(has_password("postgres://bot:secret@localhost/bots")?);
/// assert!(has_password("host=localhost password = secret")?);
/// assert!(!has_password("postgres://bot@localhost/bots")?);
/// # Ok::<_, matrix_sdk_postgres::OpenStoreError>(())
/// ```
pub fn has_password(connection_string: &str) -> Result<bool, OpenStoreError> {
    let parsed = ConnInfo::parse(connection_string, |_| Ok(None));
    parsed.map(|info| info.password.is_some()).map_err(OpenStoreError::InvalidConfig)
}
