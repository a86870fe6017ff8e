//! The schema: its version, the role's rights, and changes that others made to its tables.

use tokio_postgres::types::Type;

use super::{failed, get};
use crate::{
    DatabaseError, OpenStoreError,
    account::handle::parts,
    admin::{
        check::Check,
        connection::{AdminConnection, Transaction},
        migrate::{MigrationStatus, status},
    },
    crypto_store::CRYPTO_STORE,
};

pub(super) struct Found {
    pub(super) is_current: bool,
    pub(super) checks: Vec<Check>,
}

const DOC_ROLES: &str = "docs/operations.md#roles-and-grants";
const DOC_TABLES: &str = "docs/schema.md";
const DOC_MIGRATIONS: &str = "docs/operations.md#migrations-and-running-programs";

/// One that cannot be read does not keep the others from being looked at.
pub(super) async fn check(admin: &AdminConnection) -> Found {
    let or_failed = |name, found: Result<Check, OpenStoreError>| {
        found.unwrap_or_else(|error| failed(name, &error))
    };
    let status = status(admin).await.map(|(status, _)| status);
    let is_current = status.as_ref().is_ok_and(MigrationStatus::is_current);
    // They may be why the status cannot be read.
    let has_rights = status.as_ref().map_or(true, |status| status.exists);
    let mut checks = vec![or_failed("schema", status.map(|status| version(&status)))];
    if has_rights {
        checks.push(or_failed("rights", rights(admin).await));
    }
    if is_current {
        checks.push(or_failed("tables", tables(admin).await));
        checks.push(or_failed("distribution", distribution(admin).await));
        checks.push(or_failed("dead rows", dead_rows(admin).await));
    }
    Found { is_current, checks }
}

fn version(status: &MigrationStatus) -> Check {
    const NAME: &str = "schema";
    let schema = &status.schema;
    if let Some(part) = status.parts.iter().find(|part| part.is_too_new) {
        let found = format!("part {} of {schema} has version {}", part.part, part.installed);
        let found = format!("{found}, which is newer than this program knows");
        return Check::problem(NAME, found, "upgrade this program", DOC_MIGRATIONS);
    }
    if status.is_current() {
        return Check::ok(NAME, format!("{schema} is up to date"));
    }
    let found = match status.exists {
        true => format!("{schema} is older than this program needs"),
        false => format!("{schema} does not exist"),
    };
    let advice = "run matrix-postgres migrate, as the schema's owner";
    Check::problem(NAME, found, advice, DOC_ROLES)
}

async fn rights(admin: &AdminConnection) -> Result<Check, OpenStoreError> {
    const NAME: &str = "rights";
    let sql = "
SELECT c.relname::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') AND NOT (
    has_table_privilege(c.oid, 'SELECT') AND (c.relname = 'schema_migrations' OR (
        has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE')
        AND has_table_privilege(c.oid, 'DELETE'))))
UNION ALL
SELECT p.proname::text || '()' FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = $1 AND NOT has_function_privilege(p.oid, 'EXECUTE')
UNION ALL
SELECT 'schema ' || n.nspname::text FROM pg_namespace n
WHERE n.nspname = $1 AND NOT has_schema_privilege(n.oid, 'USAGE')
ORDER BY 1";
    let missing = names_in(admin, sql).await?;
    if missing.is_empty() {
        return Ok(Check::ok(NAME, "the role may read and write every table"));
    }
    let found = format!("the role lacks rights on {}", missing.join(", "));
    let advice = "grant them; a role that only reads needs no more than SELECT";
    Ok(Check::problem(NAME, found, advice, DOC_ROLES))
}

/// What others did to the tables that the store does not expect.
async fn tables(admin: &AdminConnection) -> Result<Check, OpenStoreError> {
    const NAME: &str = "tables";
    let sql = "
SELECT c.relname::text || CASE
    WHEN c.relkind = 'p' OR c.relispartition THEN ' is partitioned'
    WHEN c.relkind = 'f' THEN ' is a foreign table'
    WHEN c.relpersistence = 'u' THEN ' is unlogged: a crash empties it'
    WHEN c.relrowsecurity THEN ' has row security'
    WHEN EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid) THEN ' has children'
    ELSE ' has a trigger of its own' END AS name
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'f') AND (
    c.relkind <> 'r' OR c.relispartition OR c.relpersistence = 'u' OR c.relrowsecurity
    OR EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid)
    OR EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal))
ORDER BY 1";
    let mut odd = names_in(admin, sql).await?;
    odd.extend(missing_indexes(admin).await?);
    if odd.is_empty() {
        return Ok(Check::ok(NAME, "as the migrations made them"));
    }
    let advice = "undo it: the store is not tested with it";
    Ok(Check::problem(NAME, odd.join(", "), advice, DOC_TABLES))
}

/// Without one, reads take long, or a save fails.
async fn missing_indexes(admin: &AdminConnection) -> Result<Vec<String>, OpenStoreError> {
    let sql = "
SELECT c.relname::text AS name FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND i.indisvalid";
    let found = names_in(admin, sql).await?;
    let parts = parts(&[&CRYPTO_STORE]);
    let lines = parts.iter().flat_map(|part| part.steps).flat_map(|step| step.sql.lines());
    let missing = lines.filter_map(created_index).filter(|index| !found.contains(index));
    Ok(missing.map(|index| format!("the index {index} is missing or invalid")).collect())
}

/// The index that a line of a migration creates: a table's primary key, or another one.
fn created_index(line: &str) -> Option<String> {
    let name = |rest: &str| rest.split_whitespace().next().map(str::to_owned);
    if let Some(rest) = line.strip_prefix("CREATE TABLE {schema}.") {
        return name(rest).map(|table| format!("{table}_pkey"));
    }
    ["CREATE INDEX ", "CREATE UNIQUE INDEX "]
        .iter()
        .find_map(|kind| line.strip_prefix(kind))
        .and_then(name)
}

/// Of a database that Citus distributes.
async fn distribution(admin: &AdminConnection) -> Result<Check, OpenStoreError> {
    const NAME: &str = "distribution";
    let transaction = admin.read().await?;
    let exists = "SELECT to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL AS found";
    if !get::<bool>(&transaction.query_one(exists, &[]).await?, "found")? {
        transaction.commit().await?;
        return Ok(Check::ok(NAME, "the tables are on one server"));
    }
    let sql = "
SELECT c.relname::text || ' by ' ||
    coalesce(column_to_column_name(d.logicalrelid, d.partkey), 'nothing') AS name
FROM pg_dist_partition d JOIN pg_class c ON c.oid = d.logicalrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND d.partmethod <> 'n' AND NOT (d.partmethod = 'h' AND
    column_to_column_name(d.logicalrelid, d.partkey) =
        CASE c.relname WHEN 'accounts' THEN 'id' ELSE 'account_id' END)
ORDER BY 1";
    let odd = names(&transaction, sql, admin.schema().name()).await?;
    transaction.commit().await?;
    if odd.is_empty() {
        return Ok(Check::ok(NAME, "by the account's number, or on every node"));
    }
    let found = format!("distributed by another column: {}", odd.join(", "));
    Ok(Check::problem(NAME, found, "distribute them by account_id, or not at all", DOC_TABLES))
}

/// Whether vacuum keeps up, and what keeps it from that.
async fn dead_rows(admin: &AdminConnection) -> Result<Check, OpenStoreError> {
    const NAME: &str = "dead rows";
    let transaction = admin.read().await?;
    let sql = "SELECT relname::text || ' (' || n_dead_tup || ' dead, ' || n_live_tup || ' live)' AS name \
               FROM pg_stat_user_tables \
               WHERE schemaname = $1 AND n_dead_tup > 10000 AND n_dead_tup > n_live_tup ORDER BY 1";
    let bloated = names(&transaction, sql, admin.schema().name()).await?;
    let sql = "
SELECT 'a transaction that is open for ' || date_trunc('minute', now() - xact_start) ||
    ' (process ' || pid || ')' AS name
FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'
    AND xact_start < now() - interval '1 hour'
UNION ALL
SELECT 'the replication slot ' || slot_name FROM pg_replication_slots
WHERE NOT active AND (xmin IS NOT NULL OR catalog_xmin IS NOT NULL)
UNION ALL
SELECT 'the prepared transaction ' || gid FROM pg_prepared_xacts WHERE database = current_database()
ORDER BY 1";
    let rows = transaction.query(sql, &[]).await?;
    let holders = rows.iter().map(|row| get(row, "name")).collect::<Result<Vec<String>, _>>()?;
    let hidden = hidden_sessions(&transaction).await?;
    transaction.commit().await?;
    let doc = "docs/operations.md#vacuum";
    let holds = format!("vacuum is held back by {}", holders.join(", "));
    Ok(match (bloated.is_empty(), holders.is_empty()) {
        (true, true) if hidden > 0 => {
            let unseen =
                format!("of {hidden} sessions of other roles the transactions are not seen");
            Check::ok(NAME, format!("vacuum keeps up; {unseen} (that needs pg_read_all_stats)"))
        }
        (true, true) => Check::ok(NAME, "vacuum keeps up"),
        (true, false) => Check::warning(NAME, holds, "end it").see(doc),
        (false, true) => {
            let found = format!("more dead rows than live ones in {}", bloated.join(", "));
            Check::warning(NAME, found, "let autovacuum come earlier, or VACUUM these tables")
                .see(doc)
        }
        (false, false) => {
            let found = format!("more dead rows than live ones in {}; {holds}", bloated.join(", "));
            Check::problem(NAME, found, "end it, then VACUUM these tables", doc)
        }
    })
}

/// A role without pg_read_all_stats sees that there are sessions of other roles, and no more.
async fn hidden_sessions(transaction: &Transaction<'_>) -> Result<i64, DatabaseError> {
    let sql = "SELECT count(*) AS hidden FROM pg_stat_activity \
               WHERE datname = current_database() AND usesysid IS NOT NULL \
                 AND query = '<insufficient privilege>'";
    get(&transaction.query_one(sql, &[]).await?, "hidden")
}

/// The same as [`names`], in a transaction of its own.
async fn names_in(admin: &AdminConnection, sql: &str) -> Result<Vec<String>, OpenStoreError> {
    let transaction = admin.read().await?;
    let names = names(&transaction, sql, admin.schema().name()).await?;
    // One that is dropped closes its connection.
    transaction.commit().await?;
    Ok(names)
}

/// The column `name` of the answer to a question about a schema.
async fn names(
    transaction: &Transaction<'_>,
    sql: &str,
    schema: &str,
) -> Result<Vec<String>, DatabaseError> {
    let rows = transaction.query(sql, &[(&schema, Type::TEXT)]).await?;
    rows.iter().map(|row| get(row, "name")).collect()
}
