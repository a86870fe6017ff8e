//! Ownership of the account: the owner token, which the guard of each write transaction checks; the
//! position of each lane, which its last statement compares and swaps; and what happens when the
//! database has other values.

pub(super) mod claim;
mod evidence;
pub(crate) mod heartbeat;
pub(crate) mod lane;
mod owner_row;
mod process;
mod proof;
mod tokens;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use tokio_postgres::types::Type;
use tracing::{debug, warn};

use self::{
    evidence::{Evidence, LaneRow},
    proof::Proof,
};
pub(crate) use self::{
    lane::LaneOwnership,
    owner_row::{OWNER, OWNER_BY_NAME, OwnerRow},
    process::Process,
    proof::{Interval, Moment},
    tokens::{OwnershipState, Position, random_id},
};
use crate::{
    Error,
    account::cache::Cache,
    postgres::{database::Database, metrics, statement::Sql},
};

/// First statement of a write transaction: checks the owner token, and sets the transaction marker
/// that the other statements require.
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

pub(crate) const STATEMENTS: &[&Sql] = &[
    &GUARD,
    &COUNT_COMMIT,
    &lane::FENCE,
    &lane::IS_CURRENT,
    &OWNER,
    &OWNER_BY_NAME,
    &claim::CLAIM,
];

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
    /// The loss that an error reports.
    pub(crate) fn of(error: &Error) -> Option<Self> {
        match error {
            Error::Superseded { by, since } => {
                Some(Self::Superseded { by: by.clone(), since: *since })
            }
            Error::DatabaseRolledBack => Some(Self::DatabaseRolledBack),
            _ => None,
        }
    }

    /// The database has this owner's token, and a commit of another process.
    fn to_copy() -> Self {
        let by = "a copy of this owner, with the same token".to_owned();
        Self::Superseded { by, since: SystemTime::now() }
    }
}

/// One account's owner in this process, for all of its lanes.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) account_id: i64,
    known: Mutex<OwnershipState>,
    lanes: Mutex<Vec<Weak<LaneOwnership>>>,
    loss: OnceLock<Loss>,
    /// No store of the account is open any more.
    has_ended: AtomicBool,
    proof: Proof,
    /// Held while the account is verified for the heartbeat: only one check at a time, because each
    /// takes a connection, and may not be answered.
    verifying: tokio::sync::Mutex<()>,
}

impl Owner {
    pub(crate) fn new(
        account_id: i64,
        known: OwnershipState,
        heartbeat_interval: Arc<Interval>,
    ) -> Arc<Self> {
        let (known, proof) = (Mutex::new(known), Proof::new(heartbeat_interval));
        let (lanes, verifying) = (Mutex::default(), tokio::sync::Mutex::default());
        let (loss, has_ended) = (OnceLock::new(), AtomicBool::new(false));
        Arc::new(Self { account_id, known, lanes, loss, has_ended, proof, verifying })
    }

    /// The ownership of one lane, from now on.
    pub(crate) fn lane(self: &Arc<Self>, name: &'static str, cache: Cache) -> Arc<LaneOwnership> {
        let lane = LaneOwnership::new(self.clone(), name, cache);
        let mut lanes = lock(&self.lanes);
        lanes.retain(|lane| lane.strong_count() > 0);
        lanes.push(Arc::downgrade(&lane));
        drop(lanes);
        if let Some(loss) = self.loss.get() {
            lane.record_loss(loss.clone());
        }
        lane
    }

    /// Records that a query sent at this time found the account to be ours.
    pub(crate) fn prove(&self, sent: Moment) {
        self.proof.record(sent);
    }

    /// Whether the last proof of ownership is recent enough to act without another one.
    pub(crate) fn is_proven(&self) -> bool {
        self.proof.is_recent()
    }

    pub(crate) fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Fails if the account was lost.
    pub(crate) fn check_lost(&self) -> Result<(), Error> {
        self.loss.get().map_or(Ok(()), |loss| Err(loss.clone().into()))
    }

    pub(crate) fn lanes(&self) -> Vec<Arc<LaneOwnership>> {
        lock(&self.lanes).iter().filter_map(Weak::upgrade).collect()
    }

    fn known(&self) -> MutexGuard<'_, OwnershipState> {
        lock(&self.known)
    }

    /// A copy of the state, for reopening.
    pub(crate) fn snapshot(&self) -> OwnershipState {
        self.known().clone()
    }

    /// Records a token that the account may have from now on.
    pub(crate) fn request(&self, token: [u8; 16]) {
        self.known().tokens.request(token);
    }

    pub(crate) fn token(&self) -> [u8; 16] {
        self.known().tokens.current().unwrap_or_default()
    }

    /// Records that the account was lost, for all of its lanes. Logged, because the next call that returns it may
    /// be far off.
    pub(crate) fn record_loss(&self, loss: &Loss) {
        if self.loss.set(loss.clone()).is_ok() {
            let error = Error::from(loss.clone());
            warn!(account_id = self.account_id, %error, "the account is lost to this store");
            metrics::ownership(match loss {
                Loss::Superseded { .. } => "superseded",
                Loss::DatabaseRolledBack => "rolled_back",
            });
        }
        self.lanes().iter().for_each(|lane| lane.record_loss(loss.clone()));
    }

    /// What the rows of the account's lanes show, read after it was in the state `seen`.
    fn evidence(&self, rows: &[LaneRow<'_>], seen: &OwnershipState) -> Evidence {
        Evidence::of(rows, seen, &self.known())
    }

    /// Checks in the account's own database whether the account is lost, unless a check is running
    /// already.
    pub(crate) async fn verify_once(&self, database: &Database) {
        if let Ok(_verifying) = self.verifying.try_lock() {
            self.verify(database).await;
        }
    }

    async fn verify(&self, database: &Database) {
        if let Err(error) = self.read_owner_row(database).await {
            debug!(%error, "the account is lost, or its owner could not be read");
        }
    }

    /// Reads the owner's row, and fails if it shows a loss.
    pub(crate) async fn read_owner_row(&self, database: &Database) -> Result<OwnerRow, Error> {
        let before = self.snapshot();
        let row = OwnerRow::read(database, self.account_id).await?;
        // A token that was replaced meanwhile is accepted: the answer is late.
        match row.loss(&before, |token| self.known().tokens.contains(token)) {
            Some(loss) => {
                self.record_loss(&loss);
                Err(loss.into())
            }
            None => Ok(row),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
