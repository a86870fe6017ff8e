//! Accounts: their owners, who else can read them, and whether they were rolled back.

use std::time::SystemTime;

use tokio_postgres::{Row, types::Type};

use super::{DoctorOptions, get};
use crate::{
    DatabaseError, OpenStoreError, PostgresStoreConfig,
    admin::{
        check::Check,
        connection::AdminConnection,
        owner::{COMMITS, IS_ALIVE},
    },
};

const DOC_OWNER: &str = "docs/operations.md#one-account-one-owner";
const DOC_ROLLBACK: &str = "docs/operations.md#rollback-detection";

const SCHEMA: &str =
    "SELECT count(*) AS accounts, current_user::text AS role FROM {schema}.accounts";

const SEQUENCE: &str = "
SELECT coalesce(max(id) > pg_sequence_last_value(pg_get_serial_sequence($1, 'id')::regclass), false)
    AS is_behind
FROM {schema}.accounts";

pub(super) async fn check(
    admin: &AdminConnection,
    config: &PostgresStoreConfig,
    options: &DoctorOptions,
) -> Result<Vec<Check>, OpenStoreError> {
    let transaction = admin.read().await?;
    let schema = transaction.query_one(SCHEMA, &[]).await?;
    let mut checks = vec![others(&schema)?];
    let sql = format!(
        "
SELECT a.secret_kind > 0 AS is_encrypted, o.name AS owner, o.since, o.since > clock_timestamp() AS is_future,
    {IS_ALIVE} AS is_alive, {COMMITS} AS commits
FROM {{schema}}.accounts a LEFT JOIN {{schema}}.account_owners o ON o.account_id = a.id
WHERE a.name = $1"
    );
    let rows = transaction.query(&sql, &[(&config.account, Type::TEXT)]).await?;
    let Some(account) = rows.first() else {
        let found = format!("there is no account {:?}", config.account);
        let advice = "see to its name and the schema's, or start the bot for the first time";
        checks.push(Check::problem("account", found, advice, DOC_OWNER));
        return Ok(checks);
    };
    checks.push(encryption(account)?);
    checks.push(owner(account)?);
    transaction.commit().await?;
    let timeline = timeline(admin).await;
    let commits = get::<i64>(account, "commits")?.unsigned_abs();
    let is_future = get::<Option<bool>>(account, "is_future")?.unwrap_or_default();
    let is_behind = is_sequence_behind(admin).await.unwrap_or_default();
    checks.push(rollback(options.checkpoint, commits, is_future, is_behind, timeline));
    Ok(checks)
}

fn others(row: &Row) -> Result<Check, DatabaseError> {
    const NAME: &str = "accounts behind one role";
    let (accounts, role): (i64, String) = (get(row, "accounts")?, get(row, "role")?);
    if accounts < 2 {
        return Ok(Check::ok(NAME, format!("the role {role} can read {accounts}")));
    }
    let found =
        format!("the role {role} can read and change all {accounts} accounts of the schema");
    let advice = "if their bots must not trust one another, give each a schema and a role";
    Ok(Check::warning(NAME, found, advice).see("docs/operations.md#roles-and-grants"))
}

fn encryption(row: &Row) -> Result<Check, DatabaseError> {
    const NAME: &str = "encryption at rest";
    if get(row, "is_encrypted")? {
        return Ok(Check::ok(NAME, "the account is encrypted"));
    }
    let found =
        "the account is not encrypted: everyone who can read the database or a backup has its keys";
    let advice = "begin a new account with a passphrase, and move the room keys";
    Ok(Check::warning(NAME, found, advice).see("docs/threat-model.md"))
}

fn owner(row: &Row) -> Result<Check, DatabaseError> {
    const NAME: &str = "owner";
    let Some(name) = get::<Option<String>>(row, "owner")? else {
        let advice = "start the bot";
        return Ok(Check::warning(NAME, "the account was never opened", advice));
    };
    let since: SystemTime = get(row, "since")?;
    let ago = since.elapsed().unwrap_or_default().as_secs() / 60;
    let owner = format!("{name}, since {ago} min ago");
    if get(row, "is_alive")? {
        return Ok(Check::ok(NAME, format!("{owner}; its heartbeat is alive")));
    }
    let found = format!("{owner}; it has closed the account or is dead: no heartbeat");
    Ok(Check::warning(NAME, found, "start the bot, unless it is meant to be down").see(DOC_OWNER))
}

/// `None` for a role without rights on the sequence, which a bot does not need.
async fn is_sequence_behind(admin: &AdminConnection) -> Option<bool> {
    let transaction = admin.read().await.ok()?;
    let table = admin.schema().qualify("{schema}.accounts");
    let row = transaction.query_one(SEQUENCE, &[(&table, Type::TEXT)]).await.ok()?;
    transaction.commit().await.ok()?;
    get(&row, "is_behind").ok()
}

/// How often the server was promoted, or restored to a point in time, plus one; `None` if it does not say.
async fn timeline(admin: &AdminConnection) -> Option<i32> {
    let transaction = admin.read().await.ok()?;
    let sql = "SELECT timeline_id FROM pg_control_checkpoint()";
    let row = transaction.query_one(sql, &[]).await.ok()?;
    transaction.commit().await.ok()?;
    get(&row, "timeline_id").ok()
}

const ROLLED_BACK: &str = "rolled back";

/// The answer to a checkpoint that was given, where the account could not be read.
pub(super) fn not_compared() -> Check {
    let found = "the checkpoint that was given was not compared with the account's commits";
    let advice = "see to what was not checked, and run it again";
    Check::problem(ROLLED_BACK, found, advice, DOC_ROLLBACK)
}

pub(super) fn is_about_rollback(check: &Check) -> bool {
    check.name == ROLLED_BACK
}

fn rollback(
    checkpoint: Option<u64>,
    commits: u64,
    owner_from_the_future: bool,
    sequence_behind: bool,
    timeline: Option<i32>,
) -> Check {
    const NAME: &str = ROLLED_BACK;
    let new_device = "stop the bot and give it a new device: matrix-postgres reset-device";
    if let Some(checkpoint) = checkpoint.filter(|checkpoint| *checkpoint > commits) {
        let found = format!(
            "the account has {commits} commits, and had {checkpoint}: the database was rolled back"
        );
        return Check::problem(NAME, found, new_device, DOC_ROLLBACK);
    }
    let mut signs = Vec::new();
    if owner_from_the_future {
        signs.push("the owner's time is in the future".to_owned());
    }
    if sequence_behind {
        signs.push("rows were copied without their sequence, as restores do".to_owned());
    }
    if let Some(timeline) = timeline.filter(|timeline| *timeline > 1) {
        signs.push(format!("the server was promoted or restored {} times", timeline - 1));
    }
    if signs.is_empty() {
        let found = match checkpoint {
            Some(checkpoint) => {
                format!("no: {commits} commits, and {checkpoint} were noted elsewhere")
            }
            None => format!("no sign of it; {commits} commits (--checkpoint compares that)"),
        };
        return Check::ok(NAME, found);
    }
    let advice = format!("if that lost commits: {new_device}");
    Check::warning(NAME, signs.join(", "), advice).see(DOC_ROLLBACK)
}

#[cfg(test)]
mod tests {
    use super::rollback;
    use crate::admin::CheckStatus::{Ok, Problem, Warning};

    #[test]
    fn a_smaller_count_is_proof_and_the_rest_are_signs() {
        for (checkpoint, future, behind, timeline, status) in [
            (None, false, false, None, Ok),
            (Some(10), false, false, Some(1), Ok),
            (Some(9), false, false, Some(1), Ok),
            (Some(11), false, false, None, Problem),
            (None, true, false, None, Warning),
            (None, false, true, None, Warning),
            (Some(10), false, false, Some(2), Warning),
        ] {
            let check = rollback(checkpoint, 10, future, behind, timeline);
            assert_eq!(check.status, status, "{check:?}");
        }
    }
}
