//! Who owns the account: the owner token that each write transaction shows to the guard, the position
//! of each lane that its last statement compares and swaps, and what follows when one of them is no
//! longer the account's.

pub(super) mod claim;
pub(crate) mod heartbeat;
pub(crate) mod lane;
mod owner_row;
mod tokens;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use tokio_postgres::types::Type;
use tracing::debug;

pub(crate) use self::{
    lane::LaneOwnership,
    owner_row::{OWNER, OwnerRow},
    tokens::{Known, Position, random_id},
};
use crate::{
    Error,
    account::cache::Cache,
    postgres::{database::Database, statement::Sql},
};

/// First statement of a write transaction: checks the owner token, and sets the transaction marker
/// that the other statements ask for.
pub(crate) static GUARD: Sql = Sql::new(
    "ownership.guard",
    "SELECT {schema}.guard($1, $2, $3, $4, $5)",
    &[Type::INT8, Type::BYTEA, Type::TEXT_ARRAY, Type::INT8_ARRAY, Type::BYTEA_ARRAY],
);

/// Last statement of a write transaction: compares and swaps the position of each lane, or raises.
pub(crate) static COUNT_COMMIT: Sql = Sql::new(
    "ownership.count_commit",
    "SELECT {schema}.count_commit($1, $2, $3, $4, $5)",
    &[Type::INT8, Type::TEXT_ARRAY, Type::INT8_ARRAY, Type::BYTEA_ARRAY, Type::BYTEA],
);

pub(crate) const STATEMENTS: &[&Sql] =
    &[&GUARD, &COUNT_COMMIT, &lane::FENCE, &OWNER, &claim::CLAIM];

/// How an account was lost for good.
#[derive(Debug, Clone)]
pub(crate) enum Loss {
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

impl Loss {
    /// The loss that an error tells of.
    pub(crate) fn of(error: &Error) -> Option<Self> {
        match error {
            Error::Superseded { by, since } => {
                Some(Self::Superseded { by: by.clone(), since: *since })
            }
            Error::DatabaseRolledBack => Some(Self::DatabaseRolledBack),
            _ => None,
        }
    }

    /// Our token, and a commit that is not ours.
    fn to_a_copy() -> Self {
        let by = "a copy of this owner, with the same token".to_owned();
        Self::Superseded { by, since: SystemTime::now() }
    }
}

/// One account's owner in this process, for all of its lanes.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) account_id: i64,
    known: Mutex<Known>,
    lanes: Mutex<Vec<Weak<LaneOwnership>>>,
    loss: OnceLock<Loss>,
    /// No store of the account is open any more.
    has_ended: AtomicBool,
    /// Held while the heartbeat has the account verified: each question takes a connection, and may
    /// stay without an answer.
    verifying: tokio::sync::Mutex<()>,
}

impl Owner {
    pub(crate) fn new(account_id: i64, known: Known) -> Arc<Self> {
        let known = Mutex::new(known);
        let (lanes, verifying) = (Mutex::default(), tokio::sync::Mutex::default());
        let (loss, has_ended) = (OnceLock::new(), AtomicBool::new(false));
        Arc::new(Self { account_id, known, lanes, loss, has_ended, verifying })
    }

    /// The part of one lane, from now on.
    pub(crate) fn lane(self: &Arc<Self>, name: &'static str, cache: Cache) -> Arc<LaneOwnership> {
        let lane = LaneOwnership::new(self.clone(), name, cache);
        let mut lanes = lock(&self.lanes);
        lanes.retain(|lane| lane.strong_count() > 0);
        lanes.push(Arc::downgrade(&lane));
        drop(lanes);
        if let Some(loss) = self.loss.get() {
            lane.lose(loss.clone());
        }
        lane
    }

    pub(crate) fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Whether the account may be opened again.
    pub(crate) fn check_lost(&self) -> Result<(), Error> {
        self.loss.get().map_or(Ok(()), |loss| Err(loss.clone().into()))
    }

    pub(crate) fn lanes(&self) -> Vec<Arc<LaneOwnership>> {
        lock(&self.lanes).iter().filter_map(Weak::upgrade).collect()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    /// What is known of the account, for a reopening.
    pub(crate) fn snapshot(&self) -> Known {
        self.known().clone()
    }

    /// Notes a token that the account may have from now on.
    pub(crate) fn request(&self, token: [u8; 16]) {
        self.known().tokens.request(token);
    }

    pub(crate) fn token(&self) -> [u8; 16] {
        self.known().tokens.current().unwrap_or_default()
    }

    /// Ends the account for all of its lanes.
    pub(crate) fn lose(&self, loss: &Loss) {
        let _ = self.loss.set(loss.clone());
        self.lanes().iter().for_each(|lane| lane.lose(loss.clone()));
    }

    /// Whether a token and a count of commits that were read of a lane, when its owner had `seen` so
    /// many, may still be ours. What was ours earlier may be a late answer.
    pub(crate) fn is_plausible(&self, token: &[u8], commits: i64, seen: i64) -> bool {
        commits >= seen && self.known().tokens.contains(token)
    }

    /// Asks the account's own database whether it is lost, unless that is being asked already.
    pub(crate) async fn verify_once(&self, database: &Database) {
        if let Ok(_verifying) = self.verifying.try_lock() {
            self.verify(database).await;
        }
    }

    async fn verify(&self, database: &Database) {
        if let Err(error) = self.look(database).await {
            debug!(%error, "the account is lost, or its owner could not be read");
        }
    }

    /// Reads the account's row, and fails when that shows a loss.
    pub(crate) async fn look(&self, database: &Database) -> Result<OwnerRow, Error> {
        let before = self.snapshot();
        let row = OwnerRow::read(database, self.account_id).await?;
        // A token that was replaced meanwhile is only a late answer.
        match row.loss(&before, |token| self.known().tokens.contains(token)) {
            Some(loss) => {
                self.lose(&loss);
                Err(loss.into())
            }
            None => Ok(row),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
