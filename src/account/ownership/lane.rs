//! One lane of an owned account: its position, its cache, and whether it may still be used.

use std::sync::{Arc, Mutex, MutexGuard};

use tokio_postgres::types::{ToSql, Type};

use super::{
    Loss, Owner, lock,
    owner_row::transaction_id,
    tokens::{Position, random_id},
};
use crate::{
    DatabaseError, Error,
    account::cache::Cache,
    postgres::{
        database::{Database, Param},
        statement::Sql,
    },
};

pub(crate) static FENCE: Sql = Sql::new(
    "ownership.fence",
    "
SELECT commits, last_transaction, maintenance FROM {schema}.fence($1, $2, $3, $4, $5, $6)",
    &[Type::INT8, Type::BYTEA, Type::TEXT, Type::INT8, Type::BYTEA, Type::BYTEA],
);

/// Returns a row if the account has this owner and the lane this position. None on a standby, which may lag
/// behind: without a transaction, nothing else requires a server that accepts writes.
pub(crate) static IS_CURRENT: Sql = Sql::new(
    "account_lanes.is_current",
    "
SELECT FROM {schema}.account_owners o JOIN {schema}.account_lanes l ON l.account_id = o.account_id
WHERE o.account_id = $1 AND o.token = $2 AND l.lane = $3 AND l.commits = $4
  AND l.last_transaction IS NOT DISTINCT FROM $5 AND NOT pg_is_in_recovery()",
    &[Type::INT8, Type::BYTEA, Type::TEXT, Type::INT8, Type::BYTEA],
);

/// The state of a lane. Each state but the first is final: reopening makes a new lane.
#[derive(Debug, Clone)]
pub(crate) enum State {
    Open,
    /// An operation failed and its error was returned: what the caller holds in memory may be ahead of
    /// the database, and a write now could make the loss permanent.
    ReopenRequired,
    /// Another owner has the account, or its database was rolled back.
    Lost(Loss),
    Closed,
}

/// The ownership of one lane.
#[derive(Debug)]
pub(crate) struct LaneOwnership {
    pub(crate) owner: Arc<Owner>,
    pub(crate) name: &'static str,
    state: Mutex<State>,
    /// Closed unless the lane is open.
    pub(crate) cache: Arc<Cache>,
}

impl LaneOwnership {
    pub(super) fn new(owner: Arc<Owner>, name: &'static str, cache: Cache) -> Arc<Self> {
        let (state, cache) = (Mutex::new(State::Open), Arc::new(cache));
        Arc::new(Self { owner, name, state, cache })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The first state after `Open` is kept, except that a loss replaces any other.
    fn leave_open(&self, to: State) {
        let mut state = self.state();
        match (&*state, &to) {
            (State::Lost(_), _) => {}
            (State::Open, _) | (_, State::Lost(_)) => *state = to,
            (State::ReopenRequired | State::Closed, _) => {}
        }
        drop(state);
        self.cache.close();
    }

    pub(crate) fn has_failed(&self) -> bool {
        matches!(*self.state(), State::ReopenRequired)
    }

    /// Records that an operation failed, and that its error is returned.
    pub(crate) fn fail(&self) {
        self.leave_open(State::ReopenRequired);
    }

    pub(crate) fn close(&self) {
        self.leave_open(State::Closed);
    }

    pub(crate) fn record_loss(&self, loss: Loss) {
        self.leave_open(State::Lost(loss));
    }

    /// Fails if the lane is lost or closed.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match &*self.state() {
            State::Lost(loss) => Err(loss.clone().into()),
            State::Closed => Err(Error::StoreClosed),
            State::Open | State::ReopenRequired => Ok(()),
        }
    }

    /// Fails if the lane cannot be written to.
    pub(crate) fn check_write(&self) -> Result<(), Error> {
        self.check()?;
        if self.has_failed() { Err(Error::ReopenRequired) } else { Ok(()) }
    }

    pub(crate) fn position(&self) -> Position {
        self.owner.known().position(self.name)
    }

    /// Records the position after a commit or a fence of this owner.
    pub(crate) fn move_to(&self, position: Position) {
        self.owner.known().set_position(self.name, position);
    }

    /// Checks that this owner still has the lane, after a write was skipped because its rows are
    /// stored already.
    pub(crate) async fn check_current(&self, database: &Database) -> Result<(), Error> {
        if self.is_current(database).await? {
            return Ok(());
        }
        let row = self.owner.read_owner_row(database).await?;
        match self.outcome(row.position(self.name), [0; 16])? {
            Outcome::Fenced => self.resolve(database, [0; 16]).await.map(drop),
            Outcome::Committed | Outcome::Unmoved => Ok(()),
        }
    }

    /// Whether the account has this owner and the lane the known position; if not, or on a standby, the
    /// owner's row shows what has happened.
    async fn is_current(&self, database: &Database) -> Result<bool, Error> {
        let Position { commits, last } = self.position();
        let (token, last) = (self.owner.token().to_vec(), last.map(Vec::from));
        let params: Vec<Param<'_>> =
            vec![&self.owner.account_id, &token, &self.name, &commits, &last];
        match database.query_pipelined(&[(&IS_CURRENT, params)]).await {
            Ok(answers) => Ok(answers.iter().any(|rows| !rows.is_empty())),
            // The role's time limits must not fail a save; the owner's row is read under the store's own.
            Err(Error::Database(error)) if error.is_statement_error() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Replaces a refusal by the guard with its cause, which the owner's row shows.
    pub(crate) async fn explain(&self, database: &Database, error: Error) -> Error {
        if error.is_other_owner() {
            self.cache.clear();
            self.owner.verify(database).await;
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
        if !error.is_other_position() {
            return Err(self.explain(database, error).await);
        }
        let row = self.owner.read_owner_row(database).await?;
        match self.outcome(row.position(self.name), transaction)? {
            Outcome::Committed => Ok(()),
            Outcome::Fenced | Outcome::Unmoved => Err(error),
        }
    }

    /// After a refusal because of the lane's position: returns whether a fence of this owner has
    /// moved the lane, and if so fences it again, so that its position is known.
    pub(crate) async fn follow_fence(&self, database: &Database) -> Result<bool, Error> {
        let row = self.owner.read_owner_row(database).await?;
        let is_fenced = self.owner.known().may_be_at(self.name, row.position(self.name));
        if is_fenced {
            self.resolve(database, [0; 16]).await?;
        }
        Ok(is_fenced)
    }

    /// Derives a transaction's outcome from the position of the lane in the database.
    fn outcome(&self, found: Position, transaction: [u8; 16]) -> Result<Outcome, Error> {
        let seen = self.position();
        if found == seen {
            return Ok(Outcome::Unmoved);
        }
        if found.commits == seen.commits + 1 && found.last == Some(transaction) {
            self.move_to(found);
            return Ok(Outcome::Committed);
        }
        if self.owner.known().may_be_at(self.name, found) {
            return Ok(Outcome::Fenced);
        }
        let loss = match found.commits < seen.commits {
            true => Loss::DatabaseRolledBack,
            false => Loss::to_copy(),
        };
        self.owner.record_loss(&loss);
        Err(loss.into())
    }

    /// After a `COMMIT` of unknown outcome: fences the transaction off, and returns whether it was
    /// committed.
    pub(crate) async fn resolve(
        &self,
        database: &Database,
        transaction: [u8; 16],
    ) -> Result<bool, Error> {
        let mut seen = self.position();
        loop {
            let wanted = random_id();
            // Recorded first: if the fence is not answered, the lane may have this id.
            self.owner.known().request_id(self.name, wanted);
            let fence = match fence(&self.owner, self.name, database, seen, wanted).await {
                Ok(fence) => fence,
                Err(error) => return Err(self.explain(database, error).await),
            };
            if fence.position == seen.after_fence(wanted) {
                self.move_to(fence.position);
                return Ok(false);
            }
            match self.outcome(fence.position, transaction)? {
                Outcome::Committed => return Ok(true),
                // An earlier fence of this owner has moved the lane. A transaction that was begun
                // after that can only be fenced off by another one.
                Outcome::Fenced | Outcome::Unmoved => seen = fence.position,
            }
        }
    }
}

/// A transaction's outcome, by the position of its lane.
enum Outcome {
    /// It is the last one that was counted.
    Committed,
    /// It was not counted, and a fence of this owner has moved the lane.
    Fenced,
    /// It was not counted, and may still be.
    Unmoved,
}

/// The state of a lane after a fence.
#[derive(Clone, Copy)]
pub(crate) struct Fence {
    pub(crate) position: Position,
    pub(crate) maintenance: i64,
}

/// Sets the last id of a lane to `wanted`, if the lane is where its owner has `seen` it.
async fn fence(
    owner: &Owner,
    lane: &'static str,
    database: &Database,
    seen: Position,
    wanted: [u8; 16],
) -> Result<Fence, Error> {
    let (token, last) = (owner.token(), seen.last());
    let (token, id) = (token.as_slice(), wanted.as_slice());
    let params: [&(dyn ToSql + Sync); 6] =
        [&owner.account_id, &token, &lane, &seen.commits, &last, &id];
    let mut attempts = database.retry().attempts();
    // Repeated with the same ids, so that a late or lost answer does no harm.
    loop {
        let unreplicated = database.unreplicated_commits();
        let rows = database.write_autocommit(&FENCE, &params).await?;
        let row = rows.first().ok_or(Error::Internal("a fence returned no row"))?;
        // Otherwise the standby may lack the position that was returned.
        if database.unreplicated_commits() == unreplicated {
            let last = transaction_id(row.try_get(1)?);
            let position = Position { commits: row.try_get(0)?, last };
            return Ok(Fence { position, maintenance: row.try_get(2)? });
        }
        let message = "no COMMIT waits for its synchronous standby: find out what cancels the wait";
        if !attempts.pause(FENCE.name, &message).await {
            return Err(DatabaseError::permanent(message).into());
        }
    }
}

impl Owner {
    /// Fences off the transactions in flight of a lane that is reopened, whatever its position.
    pub(crate) async fn reopen_lane(
        &self,
        lane: &'static str,
        database: &Database,
    ) -> Result<Fence, Error> {
        let mut seen = self.read_owner_row(database).await?.position(lane);
        loop {
            let wanted = random_id();
            self.known().request_id(lane, wanted);
            let fence = fence(self, lane, database, seen, wanted).await?;
            if fence.position == seen.after_fence(wanted) {
                self.known().set_position(lane, fence.position);
                return Ok(fence);
            }
            // A late commit was counted meanwhile.
            seen = fence.position;
        }
    }
}
