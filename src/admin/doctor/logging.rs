//! Whether the server writes parameters of statements to its log.

use tokio_postgres::types::Type;

use super::get;
use crate::{
    OpenStoreError, PostgresStoreConfig,
    admin::{check::Check, connection::AdminConnection},
};

const SQL: &str = "
SELECT current_setting('log_statement') AS log_statement,
       current_setting('log_min_duration_statement') AS min_duration,
       current_setting('log_min_duration_sample') AS min_sample,
       current_setting('log_parameter_max_length') AS max_length,
       current_setting('log_parameter_max_length_on_error') AS max_length_on_error";

pub(super) async fn check(
    admin: &AdminConnection,
    config: &PostgresStoreConfig,
) -> Result<Vec<Check>, OpenStoreError> {
    let transaction = admin.read().await?;
    let row = transaction.query_one(SQL, &[]).await?;
    transaction.commit().await?;
    let is_encrypted = is_encrypted(admin, &config.account).await.unwrap_or_default();
    let text = |column: &str| get::<String>(&row, column);
    let statements = ["mod", "all"].contains(&&*text("log_statement")?);
    let slow = text("min_duration")? != "-1" || text("min_sample")? != "-1";
    let keeps_parameters = text("max_length")? != "0";
    let on_error = text("max_length_on_error")? != "0";
    let by = [
        (statements && keeps_parameters, "log_statement"),
        (slow && keeps_parameters, "log_min_duration_statement"),
        (on_error, "log_parameter_max_length_on_error"),
    ];
    let by: Vec<_> = by.into_iter().filter(|(logs, _)| *logs).map(|(_, name)| name).collect();
    Ok(vec![judge(&by, is_encrypted)])
}

/// `None` without an account, or a schema.
async fn is_encrypted(admin: &AdminConnection, account: &str) -> Option<bool> {
    let transaction = admin.read().await.ok()?;
    let sql = "SELECT secret_kind > 0 AS is_encrypted FROM {schema}.accounts WHERE name = $1";
    let row = transaction.query_one(sql, &[(&account, Type::TEXT)]).await.ok()?;
    get(&row, "is_encrypted").ok()
}

fn judge(by: &[&str], is_encrypted: bool) -> Check {
    const NAME: &str = "server's log";
    if by.is_empty() {
        return Check::ok(NAME, "parameters of statements are not written to it");
    }
    let by = by.join(", ");
    let advice =
        "SET log_parameter_max_length = 0 and log_parameter_max_length_on_error = 0 for the role";
    let check = match is_encrypted {
        true => {
            let found = format!("parameters are written to it ({by}): sealed values and hashes");
            Check::warning(NAME, found, advice)
        }
        false => {
            let found = format!(
                "parameters are written to it ({by}): of accounts that are not encrypted, keys"
            );
            Check::problem(NAME, found, advice)
        }
    };
    check.see("docs/threat-model.md")
}

#[cfg(test)]
mod tests {
    use super::judge;
    use crate::admin::CheckStatus;

    #[test]
    fn parameters_in_the_log_are_keys_unless_they_are_sealed() {
        assert_eq!(judge(&[], false).status, CheckStatus::Ok);
        assert_eq!(judge(&["log_statement"], false).status, CheckStatus::Problem);
        assert_eq!(judge(&["log_statement"], true).status, CheckStatus::Warning);
    }
}
