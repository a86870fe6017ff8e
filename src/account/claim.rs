//! Takes an account over at open, or says who keeps it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use backon::Retryable;
use tokio::time::{Instant, sleep};
use tokio_postgres::types::{ToSql, Type};
use tracing::info;

use crate::{
    Access, DatabaseError, Error, OnOwner, OpenStoreError, PostgresStoreConfig,
    cache::Cache,
    connection::Database,
    ownership::{Ownership, Tokens, random_id},
    presence::{Presence, lifetime, process_id},
};

const CLAIM: &str = "SELECT token, commits, owner, since, stored, instance, maintenance \
                     FROM {schema}.claim($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";

/// How often a standby looks whether the owner is still there.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What the database says to a claim.
struct Answer {
    /// The account's token, when it is ours now.
    token: Option<Vec<u8>>,
    commits: i64,
    owner: String,
    since: SystemTime,
    /// The token before.
    stored: Vec<u8>,
    instance: Vec<u8>,
    maintenance: i64,
}

/// Takes the account over, as the configuration says; a store that is reopened takes nothing back.
pub(super) async fn claim(
    database: &Database,
    config: &PostgresStoreConfig,
    account_id: i64,
    former: Option<&Ownership>,
) -> Result<(Arc<Ownership>, Presence), OpenStoreError> {
    let (began, opening, wanted) = (Instant::now(), random_id(), random_id());
    let former = former.map(|former| {
        // For the reopening after this one, should this one's answer get lost.
        former.ask_for(wanted);
        former.tokens()
    });
    let patience = match config.on_owner {
        OnOwner::WaitUntilFree(patience) if former.is_none() => patience,
        _ => Duration::ZERO,
    };
    loop {
        let ask = || ask(database, config, account_id, former.as_ref(), wanted, opening);
        let asked = Instant::now();
        let may_pass =
            |error: &DatabaseError| error.is_transient() && asked.elapsed() < config.retry_timeout;
        let answer = ask.retry(database.backoff()).when(may_pass).await;
        let answer = answer.map_err(refused)?;
        let Some(token) = answer.token.as_deref().and_then(|token| token.try_into().ok()) else {
            if let Some(former) = &former {
                return Err(lost(former, answer).into());
            }
            if began.elapsed() < patience {
                sleep(LOOK_AGAIN.min(patience)).await;
                continue;
            }
            let Answer { owner, since, .. } = answer;
            return Err(OpenStoreError::OwnerAlive {
                account: config.account.clone(),
                owner,
                since,
            });
        };
        info!(account = config.account, "the account is ours");
        let mut tokens = former.unwrap_or_default();
        tokens.add(token);
        tokens.see(answer.commits);
        let shared = config.access == Access::Shared;
        // What others may change as well is not kept.
        let bytes = if shared { 0 } else { config.cache_bytes };
        let cache = Cache::new(bytes, config.cache_max_keys);
        cache.see_maintenance(answer.maintenance);
        let owner = Arc::new(Ownership::new(account_id, shared, tokens, cache));
        let interval = config.heartbeat_interval;
        let presence = Presence::new(answer.instance, database, &owner, opening, interval);
        return Ok((owner, presence));
    }
}

async fn ask(
    database: &Database,
    config: &PostgresStoreConfig,
    account_id: i64,
    former: Option<&Tokens>,
    wanted: [u8; 16],
    opening: [u8; 16],
) -> Result<Answer, DatabaseError> {
    let share = config.access == Access::Shared;
    let polite = config.on_owner != OnOwner::TakeOver && former.is_none();
    let expected = former.map(Tokens::expected);
    let held: Option<Vec<&[u8]>> =
        expected.as_ref().map(|tokens| tokens.iter().map(<[u8; 16]>::as_slice).collect());
    let (seen, process) = (former.map_or(0, Tokens::seen), process_id());
    let (name, lifetime) = (owner_name(config), lifetime(config.heartbeat_interval));
    let params: [(&(dyn ToSql + Sync), Type); 10] = [
        (&account_id, Type::INT8),
        (&wanted.as_slice(), Type::BYTEA),
        (&held, Type::BYTEA_ARRAY),
        (&seen, Type::INT8),
        (&share, Type::BOOL),
        (&polite, Type::BOOL),
        (&name, Type::TEXT),
        (&opening.as_slice(), Type::BYTEA),
        (&process.as_slice(), Type::BYTEA),
        (&lifetime, Type::FLOAT8),
    ];
    let sql = database.statements().schema().qualify(CLAIM);
    let rows = database.query_unprepared(&sql, &params).await?;
    let row = rows.first().ok_or_else(|| DatabaseError::broken("no answer to a claim"))?;
    Ok(Answer {
        token: row.try_get(0)?,
        commits: row.try_get(1)?,
        owner: row.try_get(2)?,
        since: row.try_get(3)?,
        stored: row.try_get(4)?,
        instance: row.try_get(5)?,
        maintenance: row.try_get(6)?,
    })
}

/// Why a store that was reopened no longer has its account.
fn lost(former: &Tokens, answer: Answer) -> Error {
    if answer.commits < former.seen() || former.had(&answer.stored) {
        Error::Rewound
    } else {
        Error::Superseded { by: answer.owner, since: answer.since }
    }
}

fn refused(error: DatabaseError) -> OpenStoreError {
    match error.sqlstate() {
        Some("25006") => OpenStoreError::ReadOnlyServer,
        _ => OpenStoreError::refused(error, "taking the account over"),
    }
}

fn owner_name(config: &PostgresStoreConfig) -> String {
    let host = whoami::hostname().unwrap_or_else(|_| "an unknown host".to_owned());
    format!("{} on {host}, process {}", config.owner_label, std::process::id())
}
