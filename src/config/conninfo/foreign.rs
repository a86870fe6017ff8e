//! Connection parameters of other drivers: what to set instead.

const SCHEMA: &str =
    "set PostgresStoreConfig::schema; the store names its schema in each statement";
const PREPARED: &str =
    "set PoolSettings::prepared_statements to false behind a pooler that needs it";
const POOL_SIZE: &str = "set PoolSettings::max_size";
const NO_MINIMUM: &str = "leave it out; connections are opened when they are needed";
const POOL_TIMEOUT: &str = "set PoolSettings::wait_timeout";
const CONNECT_TIMEOUT: &str = "use connect_timeout, in seconds";
const STATEMENT_TIMEOUT: &str = "set Timeouts::statement";
const IDLE: &str = "set PoolSettings::max_connection_idle";
const AGE: &str = "set PoolSettings::max_connection_age";
const SSLMODE: &str = "use sslmode=disable, prefer, require, verify-ca or verify-full";
const ROOT: &str = "use sslrootcert";
const CERTIFICATE: &str = "use sslcert and sslkey, with PEM files";
const LEAVE_OUT: &str = "leave it out; the store does not need it";
const SESSION: &str = "leave it out; the store does not depend on the session's settings";

/// By lower-case name without dashes and underscores: Prisma, JDBC and ADO.NET, Go's drivers, sqlx,
/// Python's, Node's and Ruby's; Neon and Supabase.
const FOREIGN: &[(&str, &str)] = &[
    ("acquiretimeout", POOL_TIMEOUT),
    ("adapter", LEAVE_OUT),
    ("autocommit", LEAVE_OUT),
    ("autosave", LEAVE_OUT),
    ("binaryparameters", PREPARED),
    ("charset", "leave it out; UTF-8 is the only encoding that is used"),
    ("commandtimeout", STATEMENT_TIMEOUT),
    ("connectionlifetime", AGE),
    ("connectionlimit", POOL_SIZE),
    ("connmaxage", AGE),
    ("connmaxlifetime", AGE),
    ("currentschema", SCHEMA),
    ("datestyle", SESSION),
    ("defaultqueryexecmode", PREPARED),
    ("defaultrowfetchsize", LEAVE_OUT),
    ("defaulttransactionisolation", SESSION),
    ("defaulttransactionreadonly", "open the store with Access::ReadOnly to write nothing"),
    ("descriptioncachecapacity", PREPARED),
    ("encoding", "leave it out; UTF-8 is the only encoding that is used"),
    ("endpoint", "leave it out; the endpoint is found by the host's name (SNI)"),
    ("idleintransactionsessiontimeout", "set Timeouts::transaction_idle"),
    ("idletimeout", IDLE),
    ("keepalive", "use keepalives=1"),
    ("locktimeout", SESSION),
    ("logintimeout", CONNECT_TIMEOUT),
    ("maxconnections", POOL_SIZE),
    ("maxidletime", IDLE),
    ("maxlifetime", AGE),
    ("maxpoolsize", POOL_SIZE),
    ("maximumpoolsize", POOL_SIZE),
    ("minconnections", NO_MINIMUM),
    ("minpoolsize", NO_MINIMUM),
    ("minimumpoolsize", NO_MINIMUM),
    ("pgbouncer", PREPARED),
    ("pool", POOL_SIZE),
    ("pooling", LEAVE_OUT),
    ("poolhealthcheckperiod", LEAVE_OUT),
    ("poolmaxconnidletime", IDLE),
    ("poolmaxconnlifetime", AGE),
    ("poolmaxconnlifetimejitter", LEAVE_OUT),
    ("poolmaxconns", POOL_SIZE),
    ("poolmaxsize", POOL_SIZE),
    ("poolminconns", NO_MINIMUM),
    ("poolrecycle", AGE),
    ("poolsize", POOL_SIZE),
    ("pooltimeout", POOL_TIMEOUT),
    ("preferquerymode", PREPARED),
    ("preparethreshold", PREPARED),
    ("preparedstatementcachequeries", PREPARED),
    ("preparedstatementcachesize", PREPARED),
    ("preparedstatements", PREPARED),
    ("querytimeout", STATEMENT_TIMEOUT),
    ("readonly", "open the store with Access::ReadOnly to write nothing"),
    ("rewritebatchedinserts", LEAVE_OUT),
    ("schema", SCHEMA),
    ("searchpath", SCHEMA),
    ("serverversion", LEAVE_OUT),
    ("singlelineconnectionstring", LEAVE_OUT),
    ("sockettimeout", "set Timeouts::statement, and use tcp_user_timeout"),
    ("ssl", SSLMODE),
    ("sslaccept", SSLMODE),
    ("sslca", ROOT),
    ("sslfactory", SSLMODE),
    ("sslidentity", CERTIFICATE),
    ("statementcachecapacity", PREPARED),
    ("statementcachemode", PREPARED),
    ("statementcachesize", PREPARED),
    ("statementtimeout", STATEMENT_TIMEOUT),
    ("stringtype", LEAVE_OUT),
    ("supa", LEAVE_OUT),
    ("targetservertype", "use target_session_attrs=read-write"),
    ("tcpkeepalive", "use keepalives=1"),
    ("timezone", SESSION),
    ("trustservercertificate", SSLMODE),
    ("uselibpqcompat", "leave it out; sslmode has libpq's meaning, or a stricter one"),
    ("usessl", SSLMODE),
    ("workaround", LEAVE_OUT),
];

/// What to set instead of another driver's parameter. Errors may quote only names in this list: any
/// other name may be a piece of a password.
pub(super) fn advice(name: &str) -> Option<&'static str> {
    let name = normalized(name);
    FOREIGN.iter().find(|(foreign, _)| *foreign == name).map(|(_, advice)| *advice)
}

/// Whether the names differ only in case, dashes, underscores or blanks.
pub(super) fn is_spelling_of(name: &str, known: &str) -> bool {
    normalized(name) == normalized(known)
}

fn normalized(name: &str) -> String {
    // sqlx writes `options[search_path]`.
    let name =
        name.strip_prefix("options[").and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.chars().filter(|c| !matches!(c, '-' | '_' | ' ')).collect::<String>().to_ascii_lowercase()
}

/// What to do about the start-up parameter `options`; its text is not quoted.
pub(super) fn advice_on_options(value: &str) -> &'static str {
    for (part, advice) in [
        ("endpoint", "the endpoint is found by the host's name (SNI); leave options out"),
        ("project", "the project is found by the host's name (SNI); leave options out"),
        ("reference", "write the project's reference into the user's name, postgres.<reference>"),
        ("--cluster", "write the cluster's name before the database's, <cluster>.<database>"),
        ("search_path", SCHEMA),
        ("statement_timeout", STATEMENT_TIMEOUT),
    ] {
        if value.contains(part) {
            return advice;
        }
    }
    "poolers drop start-up parameters, so nothing may depend on them; set defaults with \
     ALTER ROLE … SET instead"
}
