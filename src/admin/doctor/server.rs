//! The server: its version, whether its commits are durable, whether it is writable, its clock.

use std::time::{Duration, SystemTime};

use super::get;
use crate::{
    OpenStoreError,
    admin::{check::Check, connection::AdminConnection},
};

/// The oldest server that the tests pass on.
const OLDEST: i32 = 13;

const SKEW_NOTED: Duration = Duration::from_secs(2);
const SKEW_HARMFUL: Duration = Duration::from_secs(60);

const SQL: &str = "
SELECT current_setting('server_version_num')::int4 / 10000 AS version,
       current_setting('server_version') AS full_version,
       pg_is_in_recovery() AS is_standby,
       current_setting('default_transaction_read_only') = 'on' AS is_read_only,
       current_setting('fsync') = 'on' AS fsync,
       current_setting('full_page_writes') = 'on' AS full_page_writes,
       current_setting('synchronous_commit') AS synchronous_commit,
       current_setting('synchronous_standby_names') <> '' AS has_synchronous_standby,
       clock_timestamp() AS clock";

pub(super) async fn check(admin: &AdminConnection) -> Result<Vec<Check>, OpenStoreError> {
    let transaction = admin.read().await?;
    let before = SystemTime::now();
    let row = transaction.query_one(SQL, &[]).await?;
    let after = SystemTime::now();
    transaction.commit().await?;
    let (version, full): (i32, String) = (get(&row, "version")?, get(&row, "full_version")?);
    let version = match version >= OLDEST {
        true => Check::ok("server version", format!("PostgreSQL {full}")),
        false => {
            let found = format!("PostgreSQL {full} is too old");
            let advice = format!("upgrade it to {OLDEST} or newer");
            Check::problem("server version", found, advice, "docs/operations.md#errors")
        }
    };
    let [fsync, full_pages] = [get(&row, "fsync")?, get(&row, "full_page_writes")?];
    let synchronous: String = get(&row, "synchronous_commit")?;
    let standby: bool = get(&row, "has_synchronous_standby")?;
    let access = access(get(&row, "is_standby")?, get(&row, "is_read_only")?);
    let clock = clock(before, get(&row, "clock")?, after);
    Ok(vec![version, durability(fsync, full_pages, &synchronous, standby), access, clock])
}

fn durability(fsync: bool, full_pages: bool, synchronous_commit: &str, standby: bool) -> Check {
    const NAME: &str = "durability";
    let mut off = Vec::new();
    if !fsync {
        off.push("fsync");
    }
    if !full_pages {
        off.push("full_page_writes");
    }
    if synchronous_commit == "off" {
        off.push("synchronous_commit");
    }
    if off.is_empty() {
        let standby = if standby { ", and a synchronous standby" } else { "" };
        return Check::ok(NAME, format!("commits survive a crash{standby}"));
    }
    let found = format!(
        "{} off: a crash of the server loses commits, and ratchets go back",
        off.join(", ")
    );
    let advice = "switch them on, in postgresql.conf and for the role";
    Check::problem(NAME, found, advice, "docs/reliability.md#under-which-settings")
}

fn access(is_standby: bool, is_read_only: bool) -> Check {
    const NAME: &str = "writable";
    const DOC: &str = "docs/operations.md#standbys-and-replicas";
    if is_standby {
        let advice = "name all servers of the cluster in the connection string";
        let found = "the server is a standby: a bot cannot open its store for writing";
        return Check::problem(NAME, found, advice, DOC);
    }
    if is_read_only {
        let advice = "ALTER ROLE … RESET default_transaction_read_only, or use another role";
        let found = "default_transaction_read_only is on for the role, the database or the server";
        return Check::problem(NAME, found, advice, DOC);
    }
    Check::ok(NAME, "the server is a primary")
}

/// The server's clock was read between `before` and `after`.
fn clock(before: SystemTime, server: SystemTime, after: SystemTime) -> Check {
    const NAME: &str = "clock";
    const DOC: &str = "docs/operations.md#the-heartbeat";
    let ahead = server.duration_since(after).unwrap_or_default();
    let behind = before.duration_since(server).unwrap_or_default();
    let skew = ahead.max(behind);
    let found = format!("the server's differs from ours by {:.1} s", skew.as_secs_f64());
    let advice =
        "synchronise both clocks: leases and heartbeats go by the server's, ages of keys by ours";
    match skew {
        skew if skew > SKEW_HARMFUL => Check::problem(NAME, found, advice, DOC),
        skew if skew > SKEW_NOTED => Check::warning(NAME, found, advice).see(DOC),
        _ => Check::ok(NAME, found),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::{access, clock, durability};
    use crate::admin::CheckStatus;

    #[test]
    fn what_forgets_or_refuses_is_a_problem() {
        assert_eq!(durability(true, true, "on", false).status, CheckStatus::Ok);
        for off in [(false, true, "on"), (true, false, "on"), (true, true, "off")] {
            assert_eq!(durability(off.0, off.1, off.2, false).status, CheckStatus::Problem);
        }
        assert_eq!(access(false, false).status, CheckStatus::Ok);
        assert_eq!(access(true, false).status, CheckStatus::Problem);
        assert_eq!(access(false, true).status, CheckStatus::Problem);
    }

    #[test]
    fn a_clock_is_compared_with_both_ends_of_the_question() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let later = |seconds| now + Duration::from_secs(seconds);
        for (server, status) in [
            (later(5), CheckStatus::Ok),
            (later(11), CheckStatus::Ok),
            (later(20), CheckStatus::Warning),
            (now - Duration::from_secs(10), CheckStatus::Warning),
            (later(100), CheckStatus::Problem),
        ] {
            assert_eq!(clock(now, server, later(10)).status, status, "{server:?}");
        }
    }
}
