//! Whether the server writes parameters of statements to its log.

use super::get;
use crate::{
    OpenStoreError,
    admin::{check::Check, connection::AdminConnection},
};

const SQL: &str = "
SELECT current_setting('log_statement') AS log_statement,
       current_setting('log_min_duration_statement') AS min_duration,
       current_setting('log_min_duration_sample') AS min_sample,
       current_setting('log_parameter_max_length') AS max_length,
       current_setting('log_parameter_max_length_on_error') AS max_length_on_error";

pub(super) async fn check(admin: &AdminConnection) -> Result<Vec<Check>, OpenStoreError> {
    let transaction = admin.read().await?;
    let row = transaction.query_one(SQL, &[]).await?;
    transaction.commit().await?;
    let are_encrypted = are_encrypted(admin).await.unwrap_or_default();
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
    Ok(vec![judge(&by, are_encrypted)])
}

/// Whether all accounts are, since the log is that of the server. `None` if that cannot be read.
async fn are_encrypted(admin: &AdminConnection) -> Option<bool> {
    let transaction = admin.read().await.ok()?;
    let sql = "SELECT coalesce(bool_and(secret_kind > 0), true) AS are_encrypted \
               FROM {schema}.accounts";
    let row = transaction.query_one(sql, &[]).await.ok()?;
    transaction.commit().await.ok()?;
    get(&row, "are_encrypted").ok()
}

fn judge(by: &[&str], are_encrypted: bool) -> Check {
    const NAME: &str = "server's log";
    const DOC: &str = "docs/threat-model.md";
    if by.is_empty() {
        return Check::ok(NAME, "parameters of statements are not written to it");
    }
    let by = by.join(", ");
    let advice =
        "SET log_parameter_max_length = 0 and log_parameter_max_length_on_error = 0 for the role";
    match are_encrypted {
        true => {
            let found = format!("parameters are written to it ({by}): sealed values and hashes");
            Check::warning(NAME, found, advice).see(DOC)
        }
        false => {
            let found = format!(
                "parameters are written to it ({by}): of accounts that are not encrypted, keys"
            );
            Check::problem(NAME, found, advice, DOC)
        }
    }
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
