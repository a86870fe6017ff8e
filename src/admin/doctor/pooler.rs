//! Whether a pooler is between us and the server, and whether it is safe.

use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_postgres::Client;

use crate::{
    DatabaseError, Error, OpenStoreError,
    admin::{check::Check, connection::AdminConnection},
};

const NAME: &str = "pooler";
const DOC: &str = "docs/operations.md#poolers";

/// How long a pooler may keep the second of two transactions waiting.
const LIMIT: Duration = Duration::from_secs(3);

pub(super) async fn check(
    admin: &AdminConnection,
    prepares: bool,
) -> Result<Vec<Check>, OpenStoreError> {
    let began = Instant::now();
    let first = admin.database.connect_unpooled().await?;
    let second = admin.database.connect_unpooled().await?;
    let (pid, age) = backend(&first).await?;
    let elapsed = began.elapsed();
    // Two clients that share a process of the server's, one after the other.
    let shares = backend(&second).await?.0 == pid || moves(&first, &second, pid).await?;
    if !shares {
        // It was there before we came.
        let is_pooled = age > elapsed + Duration::from_secs(1);
        let found = if is_pooled { "one in session mode" } else { "none, or one in session mode" };
        return Ok(vec![Check::ok(NAME, format!("{found}: nothing has to be set"))]);
    }
    // Named statements on a pooler that loses them would disturb its other clients.
    let keeps_names = match prepares {
        true => timeout(LIMIT, keeps_names(&first, &second)).await.unwrap_or(Ok(false))?,
        false => false,
    };
    Ok(vec![judge(prepares, keeps_names)])
}

fn judge(prepares: bool, keeps_names: bool) -> Check {
    match (prepares, keeps_names) {
        (false, _) => Check::ok(NAME, "one in transaction mode; statements go without names: safe"),
        (true, true) => {
            Check::ok(NAME, "one in transaction mode, which keeps track of named statements")
        }
        (true, false) => {
            let found = "one in transaction mode, which loses named statements: errors, and answers to \
                         other questions";
            let advice = "set PoolSettings::prepared_statements to false in the bot (then doctor --unnamed-statements), or, with PgBouncer 1.21 or newer, \
                          max_prepared_statements above 0";
            Check::problem(NAME, found, advice, DOC)
        }
    }
}

/// The server's process, and how old it is.
async fn backend(client: &Client) -> Result<(i32, Duration), DatabaseError> {
    let sql = "SELECT pg_backend_pid(), \
               extract(epoch FROM clock_timestamp() - a.backend_start)::float8 \
               FROM pg_stat_activity a WHERE a.pid = pg_backend_pid()";
    let rows = client.query_typed(sql, &[]).await?;
    let row = rows.first().ok_or_else(|| DatabaseError::broken("no answer"))?;
    let age: Option<f64> = row.try_get(1)?;
    let age = Duration::try_from_secs_f64(age.unwrap_or_default()).unwrap_or_default();
    Ok((row.try_get(0)?, age))
}

/// Whether the first client gets another process while the second is in a transaction.
async fn moves(first: &Client, second: &Client, pid: i32) -> Result<bool, Error> {
    second.batch_execute("BEGIN READ ONLY").await?;
    backend(second).await?;
    let moved = timeout(LIMIT, backend(first)).await;
    second.batch_execute("ROLLBACK").await?;
    // One that waits has but one process for both.
    Ok(match moved {
        Ok(found) => found?.0 != pid,
        Err(_) => true,
    })
}

/// Whether a statement that was prepared by one client is still its own after another was served.
async fn keeps_names(first: &Client, second: &Client) -> Result<bool, Error> {
    let mine = first.prepare_typed("SELECT 1::int4", &[]).await;
    let theirs = second.prepare_typed("SELECT 2::int4", &[]).await;
    let (Ok(mine), Ok(theirs)) = (mine, theirs) else { return Ok(false) };
    // Each in turn takes the process that the other was served by.
    for _ in 0..3 {
        for (client, statement, expected) in [(first, &mine, 1), (second, &theirs, 2)] {
            match client.query(statement, &[]).await {
                Ok(rows)
                    if rows.len() == 1 && rows[0].try_get::<_, i32>(0).ok() == Some(expected) => {}
                _ => return Ok(false),
            }
        }
        second.batch_execute("BEGIN READ ONLY").await?;
        let answer = first.query(&mine, &[]).await;
        second.batch_execute("ROLLBACK").await?;
        if answer.is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::judge;
    use crate::admin::CheckStatus;

    #[test]
    fn only_named_statements_that_get_lost_are_a_problem() {
        for (prepares, keeps_names) in [(false, false), (false, true), (true, true)] {
            assert_eq!(judge(prepares, keeps_names).status, CheckStatus::Ok);
        }
        assert_eq!(judge(true, false).status, CheckStatus::Problem);
    }
}
