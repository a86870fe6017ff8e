//! Who owns the account: the token that each write transaction shows to the guard, and what is
//! learnt when it is no longer the account's.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::SystemTime,
};

use tokio_postgres::{Row, types::Type};
use uuid::Uuid;

use crate::{
    DatabaseError, Error, cache::Cache, connection::Database, connector::doubtful_commits,
    statement::Sql,
};

/// Raised by `guard` and `settle` when the token is not the account's.
const OTHER_OWNER: &str = "MX001";
/// Raised by `guard` when the database has fewer commits than its owner has seen.
const REWOUND: &str = "MX002";

/// The first statement of a write transaction: opens the gate for the others, or fails them all.
pub(crate) static GUARD: Sql = Sql {
    name: "ownership.guard",
    template: "SELECT {schema}.guard($1, $2, $3)",
    types: &[Type::INT8, Type::BYTEA, Type::INT8],
};

/// The last statement: no row comes back when the gate is closed, because a `BEGIN` got lost.
pub(crate) static COUNT_COMMIT: Sql = Sql {
    name: "ownership.count_commit",
    template: "
UPDATE {schema}.sync_tokens SET commits = commits + 1, last_transaction = $2
WHERE account_id = $1 AND {guarded} RETURNING commits, maintenance",
    types: &[Type::INT8, Type::BYTEA],
};

static SETTLE: Sql = Sql {
    name: "ownership.settle",
    template: "SELECT {schema}.settle($1, $2, $3, $4)",
    types: &[Type::INT8, Type::BYTEA, Type::BYTEA, Type::BYTEA],
};

static OWNER: Sql = Sql {
    name: "account_owners.get",
    template: "
SELECT o.account_id, o.token, o.name, o.since, t.commits
FROM {schema}.account_owners o JOIN {schema}.sync_tokens t USING (account_id)
WHERE o.account_id = $1",
    types: &[Type::INT8],
};

static COMMITS: Sql = Sql {
    name: "sync_tokens.commits",
    template: "SELECT commits FROM {schema}.sync_tokens WHERE account_id = $1",
    types: &[Type::INT8],
};

pub(crate) const STATEMENTS: &[&Sql] = &[&GUARD, &COUNT_COMMIT, &SETTLE, &OWNER, &COMMITS];

/// A random value: numbers would repeat after a restore or a failover.
pub(crate) fn random_id() -> [u8; 16] {
    Uuid::new_v4().into_bytes()
}

/// The tokens of one opener, over reopenings.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tokens {
    /// The newest last.
    held: Vec<[u8; 16]>,
    /// Asked for, without an answer: the account may have them.
    unsure: Vec<[u8; 16]>,
    /// The most commits that the database is known to have had.
    seen: i64,
}

impl Tokens {
    pub(crate) fn current(&self) -> Option<[u8; 16]> {
        self.held.last().copied()
    }

    /// The account has this one now.
    pub(crate) fn add(&mut self, token: [u8; 16]) {
        self.unsure.clear();
        if self.current() != Some(token) {
            self.held.push(token);
        }
    }

    fn ask_for(&mut self, token: [u8; 16]) {
        self.unsure.push(token);
    }

    pub(crate) fn had(&self, token: &[u8]) -> bool {
        self.held.iter().chain(&self.unsure).any(|held| held == token)
    }

    /// Whether it was ours, but can no longer be the account's, unless that was set back.
    fn had_once(&self, token: &[u8]) -> bool {
        self.had(token) && self.expected().iter().all(|expected| expected != token)
    }

    /// Those that the account may have, if nobody took it over.
    pub(crate) fn expected(&self) -> Vec<[u8; 16]> {
        self.current().into_iter().chain(self.unsure.iter().copied()).collect()
    }

    pub(crate) fn seen(&self) -> i64 {
        self.seen
    }

    pub(crate) fn see(&mut self, commits: i64) {
        self.seen = self.seen.max(commits);
    }
}

/// What the database says of an account's owner.
pub(crate) struct Found<'a> {
    pub(crate) account_id: i64,
    token: &'a [u8],
    name: &'a str,
    since: SystemTime,
    commits: i64,
}

impl<'a> Found<'a> {
    /// The first columns of a row: the account, and then as named.
    pub(crate) fn of(row: &'a Row) -> Result<Self, Error> {
        Ok(Self {
            account_id: row.try_get(0)?,
            token: row.try_get(1)?,
            name: row.try_get(2)?,
            since: row.try_get(3)?,
            commits: row.try_get(4)?,
        })
    }
}

/// How an account was lost for good.
#[derive(Debug, Clone)]
enum Loss {
    Superseded { by: String, since: SystemTime },
    Rewound,
}

impl From<Loss> for Error {
    fn from(loss: Loss) -> Self {
        match loss {
            Loss::Superseded { by, since } => Self::Superseded { by, since },
            Loss::Rewound => Self::Rewound,
        }
    }
}

/// Whether an open account may still be used, and what its writes show to the guard.
#[derive(Debug)]
pub(crate) struct Ownership {
    pub(crate) account_id: i64,
    /// Several processes hold the token, so it cannot be changed.
    shared: bool,
    tokens: Mutex<Tokens>,
    seen: AtomicI64,
    loss: OnceLock<Loss>,
    /// An operation failed and its error was handed up: what the SDK holds in memory may be ahead of
    /// the database, and a write now could make the loss permanent.
    failed: AtomicBool,
    /// Closed when the account is lost, and when memory and database may differ.
    pub(crate) cache: Arc<Cache>,
}

impl Ownership {
    pub(crate) fn new(account_id: i64, shared: bool, tokens: Tokens, cache: Cache) -> Self {
        let seen = AtomicI64::new(tokens.seen());
        Self {
            account_id,
            shared,
            tokens: Mutex::new(tokens),
            seen,
            loss: OnceLock::new(),
            failed: AtomicBool::new(false),
            cache: Arc::new(cache),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a token that the account may have from now on.
    pub(crate) fn ask_for(&self, token: [u8; 16]) {
        self.lock().ask_for(token);
    }

    /// The tokens, for a reopening.
    pub(crate) fn tokens(&self) -> Tokens {
        let mut tokens = self.lock().clone();
        tokens.see(self.seen());
        tokens
    }

    pub(crate) fn token(&self) -> [u8; 16] {
        self.lock().current().unwrap_or_default()
    }

    pub(crate) fn seen(&self) -> i64 {
        self.seen.load(Ordering::Acquire)
    }

    pub(crate) fn see(&self, commits: i64) {
        self.seen.fetch_max(commits, Ordering::AcqRel);
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
            Error::Rewound => Loss::Rewound,
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

    /// Notes what the account's row says: whose it is now, and how many commits there were, which
    /// cannot be fewer than we had `seen` before we asked, unless the database was set back. A token
    /// that was ours earlier is only a late answer.
    pub(crate) fn observe(&self, found: &Found<'_>, seen: i64) {
        if found.commits < seen {
            self.lose_by(Loss::Rewound);
        } else if !self.lock().had(found.token) {
            self.lose_by(Loss::Superseded { by: found.name.to_owned(), since: found.since });
        }
    }

    /// Turns the guard's refusal into who took over, which takes a look at the owner's row.
    pub(crate) async fn explain(&self, database: &Database, error: Error) -> Error {
        match &error {
            Error::Database(refusal) if refusal.sqlstate() == Some(REWOUND) => {
                self.lose_by(Loss::Rewound);
            }
            Error::Database(refusal) if refusal.sqlstate() == Some(OTHER_OWNER) => {
                self.cache.close();
                if let Err(error) = self.look(database).await {
                    return error;
                }
            }
            _ => {}
        }
        self.check().err().unwrap_or(error)
    }

    async fn look(&self, database: &Database) -> Result<(), Error> {
        let seen = self.seen();
        let rows = database.query(&OWNER, &[&self.account_id]).await?;
        let Some(row) = rows.first() else {
            return Err(DatabaseError::broken("the account was deleted").into());
        };
        let found = Found::of(row)?;
        // One of our own, but not the newest: the database was set back.
        if self.lock().had_once(found.token) {
            self.lose_by(Loss::Rewound);
        } else {
            self.observe(&found, seen);
        }
        Ok(())
    }

    /// After a `COMMIT` without an answer: fences the transaction off, and tells whether it was
    /// committed. `error` is what is known of it, and all that can be said of a shared account.
    pub(crate) async fn settle(
        &self,
        database: &Database,
        transaction: [u8; 16],
        error: Error,
    ) -> Result<bool, Error> {
        if self.shared {
            return Err(error);
        }
        let (held, wanted, doubts) = (self.token(), random_id(), doubtful_commits());
        self.ask_for(wanted);
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&self.account_id, &held.as_slice(), &wanted.as_slice(), &transaction.as_slice()];
        // Repeated with the same new token, so that a lost answer does no harm.
        let rows = match database.query_alone(&SETTLE, &params).await {
            Ok(rows) => rows,
            Err(error) => return Err(self.explain(database, error).await),
        };
        self.lock().add(wanted);
        if doubtful_commits() != doubts {
            // What we were told may not be known to the standby.
            return Err(error);
        }
        let row = rows.first().ok_or_else(|| DatabaseError::broken("no answer to settle"))?;
        Ok(row.try_get(0)?)
    }

    /// How many transactions were committed in the account.
    pub(crate) async fn commits(&self, database: &Database) -> Result<i64, Error> {
        let rows = database.query(&COMMITS, &[&self.account_id]).await?;
        let row = rows.first().ok_or_else(|| DatabaseError::broken("the account was deleted"))?;
        Ok(row.try_get(0)?)
    }
}
