//! Who owns the account: the owner token that each write transaction shows to the guard, the exact
//! count of commits that its last statement compares and swaps, and what follows when one of them is
//! no longer the account's.

pub(super) mod claim;
pub(crate) mod heartbeat;
mod owner_row;
mod tokens;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use tokio::time::Instant;
use tokio_postgres::{Row, types::Type};
use tracing::debug;

pub(crate) use self::{
    owner_row::{OWNER, OwnerRow},
    tokens::{Tokens, random_id},
};
use crate::{
    DatabaseError, Error,
    account::cache::Cache,
    postgres::{database::Database, statement::Sql},
};

/// Raised when the token is not the account's.
const OTHER_OWNER: &str = "MX001";
/// Raised when the count of commits is not the one that its owner knows.
const OTHER_COUNT: &str = "MX002";

/// First statement of a write transaction: checks the owner token, and sets the transaction marker
/// that the other statements ask for.
pub(crate) static GUARD: Sql = Sql {
    name: "ownership.guard",
    template: "SELECT {schema}.guard($1, $2, $3)",
    types: &[Type::INT8, Type::BYTEA, Type::INT8],
};

/// Last statement of a write transaction: compares and swaps the count of commits, or raises.
pub(crate) static COUNT_COMMIT: Sql = Sql {
    name: "ownership.count_commit",
    template: "SELECT commits, maintenance FROM {schema}.count_commit($1, $2, $3)",
    types: &[Type::INT8, Type::INT8, Type::BYTEA],
};

static RESOLVE: Sql = Sql {
    name: "ownership.resolve",
    template: "SELECT commits, is_last FROM {schema}.resolve($1, $2, $3, $4)",
    types: &[Type::INT8, Type::BYTEA, Type::BYTEA, Type::BYTEA],
};

pub(crate) const STATEMENTS: &[&Sql] = &[&GUARD, &COUNT_COMMIT, &RESOLVE, &OWNER];

/// How an account was lost for good.
#[derive(Debug, Clone)]
enum Loss {
    Superseded { by: String, since: SystemTime },
    DatabaseRolledBack,
}

impl From<Loss> for Error {
    fn from(loss: Loss) -> Self {
        match loss {
            Loss::Superseded { by, since } => Self::Superseded { by, since },
            Loss::DatabaseRolledBack => Self::DatabaseRolledBack,
        }
    }
}

/// Whether an open account may still be used, and what its writes show to the server.
#[derive(Debug)]
pub(crate) struct Ownership {
    pub(crate) account_id: i64,
    tokens: Mutex<Tokens>,
    loss: OnceLock<Loss>,
    /// An operation failed and its error was returned: what the SDK holds in memory may be ahead of
    /// the database, and a write now could make the loss permanent.
    failed: AtomicBool,
    /// TransactionConnection while the heartbeat has the account verified: each question takes a connection, and may
    /// stay without an answer.
    verifying: tokio::sync::Mutex<()>,
    /// Closed when the account is lost, and when memory and database may differ.
    pub(crate) cache: Arc<Cache>,
}

impl Ownership {
    pub(crate) fn new(account_id: i64, tokens: Tokens, cache: Cache) -> Self {
        Self {
            account_id,
            tokens: Mutex::new(tokens),
            loss: OnceLock::new(),
            failed: AtomicBool::new(false),
            verifying: tokio::sync::Mutex::default(),
            cache: Arc::new(cache),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a token that the account may have from now on.
    pub(crate) fn request(&self, token: [u8; 16]) {
        self.lock().request(token);
    }

    /// The tokens, for a reopening.
    pub(crate) fn tokens(&self) -> Tokens {
        self.lock().clone()
    }

    pub(crate) fn token(&self) -> [u8; 16] {
        self.lock().current().unwrap_or_default()
    }

    /// Another token that the account may have, when this one was refused.
    pub(crate) fn token_instead(&self, refused: &[u8; 16]) -> Option<[u8; 16]> {
        self.lock().instead(refused)
    }

    /// How many commits the account has, as its owner knows.
    pub(crate) fn seen(&self) -> i64 {
        self.lock().seen()
    }

    /// Notes the count after a commit of ours.
    pub(crate) fn set_seen(&self, commits: i64) {
        self.lock().set_seen(commits);
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
        self.cache.close();
    }

    fn lose_by(&self, loss: Loss) {
        let _ = self.loss.set(loss);
        self.cache.close();
    }

    /// Notes an error that ends the account for this store.
    pub(crate) fn lose(&self, error: &Error) {
        let loss = match error {
            Error::Superseded { by, since } => Loss::Superseded { by: by.clone(), since: *since },
            Error::DatabaseRolledBack => Loss::DatabaseRolledBack,
            _ => return,
        };
        self.lose_by(loss);
    }

    /// Whether anything may still be asked of the account.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self.loss.get() {
            Some(loss) => Err(loss.clone().into()),
            None => Ok(()),
        }
    }

    /// Whether it may be written to.
    pub(crate) fn check_write(&self) -> Result<(), Error> {
        self.check()?;
        if self.has_failed() { Err(Error::ReopenRequired) } else { Ok(()) }
    }

    /// Whether a token and a count that were read of the account, when its owner had `seen` so many
    /// commits, may still be ours. What was ours earlier may be a late answer.
    pub(crate) fn is_plausible(&self, token: &[u8], commits: i64, seen: i64) -> bool {
        commits >= seen && self.lock().contains(token)
    }

    /// Whether the account is lost, by the word of its own database.
    pub(crate) async fn verify(&self, database: &Database) {
        if let Err(error) = self.look(database).await {
            debug!(%error, "the account is lost, or its owner could not be read");
        }
    }

    /// The same, unless that is being asked already.
    pub(crate) async fn verify_once(&self, database: &Database) {
        if let Ok(_verifying) = self.verifying.try_lock() {
            self.verify(database).await;
        }
    }

    /// Asks whether the account is still ours, where a write finds what it would write.
    pub(crate) async fn check_current(&self, database: &Database) -> Result<(), Error> {
        let row = self.look(database).await?;
        self.settles(row.commits, false).map(drop)
    }

    /// Reads the account's row, and fails when that shows a loss.
    async fn look(&self, database: &Database) -> Result<OwnerRow, Error> {
        let before = self.tokens();
        let row = OwnerRow::read(database, self.account_id).await?;
        self.judge(&row, &before)?;
        Ok(row)
    }

    /// Notes a loss that the account's row shows to its owner, who had these tokens before it was read:
    /// a token that was replaced meanwhile is only a late answer.
    fn judge(&self, row: &OwnerRow, before: &Tokens) -> Result<(), Error> {
        let token = row.token.as_deref().unwrap_or_default();
        if row.commits < before.seen() || before.is_former(token) {
            self.lose_by(Loss::DatabaseRolledBack);
        } else if !self.lock().contains(token) {
            self.lose_by(Loss::Superseded { by: row.name.clone(), since: row.since });
        }
        self.check()
    }

    /// Turns a refusal by the guard into what is behind it, which takes a look at the owner's row.
    pub(crate) async fn explain(&self, database: &Database, error: Error) -> Error {
        if is_other_owner(&error) {
            self.cache.clear();
            self.verify(database).await;
        }
        self.check().err().unwrap_or(error)
    }

    /// Explains why `transaction` was refused; `Ok` when it turns out to have been committed.
    pub(crate) async fn explain_commit(
        &self,
        database: &Database,
        transaction: [u8; 16],
        error: Error,
    ) -> Result<(), Error> {
        if error.refusal() != Some(OTHER_COUNT) {
            return Err(self.explain(database, error).await);
        }
        let row = self.look(database).await?;
        if self.settles(row.commits, row.last_transaction.as_deref() == Some(&transaction))? {
            return Ok(());
        }
        Err(error)
    }

    /// Whether a transaction was committed, by the count of commits and whether it is the last one.
    fn settles(&self, commits: i64, is_last: bool) -> Result<bool, Error> {
        let seen = self.seen();
        if is_last && commits == seen + 1 {
            self.set_seen(commits);
            return Ok(true);
        }
        if commits < seen {
            self.lose_by(Loss::DatabaseRolledBack);
        } else if commits > seen {
            // Our token, and a commit that is not ours: a copy of this process.
            let by = "a copy of this owner, with the same token".to_owned();
            self.lose_by(Loss::Superseded { by, since: SystemTime::now() });
        }
        self.check().map(|()| false)
    }

    /// After a `COMMIT` of unknown outcome: fences the transaction off, and tells whether it was
    /// committed.
    pub(crate) async fn resolve(
        &self,
        database: &Database,
        transaction: [u8; 16],
    ) -> Result<bool, Error> {
        let (held, seen, wanted) = (self.token(), self.seen(), random_id());
        self.request(wanted);
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&self.account_id, &held.as_slice(), &wanted.as_slice(), &transaction.as_slice()];
        let started = Instant::now();
        // Repeated with the same two tokens, so that a late or lost answer does no harm.
        let (commits, is_last): (i64, bool) = loop {
            let unreplicated = database.unreplicated_commits();
            let rows = match database.write_autocommit(&RESOLVE, &params).await {
                Ok(rows) => rows,
                Err(error) => return Err(self.explain(database, error).await),
            };
            let row = rows.first().ok_or_else(|| DatabaseError::broken("no answer to resolve"))?;
            // Else what we were told may not be known to the standby.
            if database.unreplicated_commits() == unreplicated {
                break (row.try_get(0)?, row.try_get(1)?);
            }
            if started.elapsed() > database.retry_timeout() {
                let message =
                    "no COMMIT waits for its synchronous standby: look for what cancels it";
                return Err(DatabaseError::unsendable(message).into());
            }
        };
        self.lock().confirm(wanted, seen);
        self.settles(commits, is_last)
    }

    /// Looks at the row of [`COUNT_COMMIT`].
    pub(crate) fn see_commit(&self, row: &Row) -> Result<(), Error> {
        let (commits, maintenance) = (row.try_get(0)?, row.try_get(1)?);
        self.set_seen(commits);
        self.cache.see_maintenance(maintenance);
        Ok(())
    }
}

/// Whether a statement was refused because the account had another token when it ran.
pub(crate) fn is_other_owner(error: &Error) -> bool {
    error.refusal() == Some(OTHER_OWNER)
}
