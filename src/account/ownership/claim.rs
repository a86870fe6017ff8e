//! Takes an account over at open, or returns who owns it.
//!
//! A claim compares and swaps the owner token, and its `COMMIT` is sent only after it was answered
//! and while the opener still waits. So a claim that is late, interrupted or cancelled never takes
//! effect.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};
use tracing::{info, warn};

use crate::{
    Error, OpenStoreError, OwnershipSettings, Takeover,
    account::{
        cancellation::Cancellation,
        ownership::{
            Moment, Owner, OwnerRow, OwnershipState, Position,
            heartbeat::{HandleRow, Heartbeat, Presence},
            owner_row::transaction_id,
            process::Process,
            random_id,
        },
    },
    postgres::{
        database::Database, metrics, statement::Sql, transaction_connection::TransactionConnection,
    },
};

pub(crate) static CLAIM: Sql = Sql::new(
    "ownership.claim",
    "SELECT granted, commits, last, maintenance \
               FROM {schema}.claim($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
    &[
        Type::INT8,
        Type::BYTEA,
        Type::BYTEA,
        Type::TEXT_ARRAY,
        Type::INT8_ARRAY,
        Type::BOOL,
        Type::TEXT,
        Type::BYTEA,
        Type::BYTEA,
        Type::FLOAT8,
        Type::TEXT,
        Type::BYTEA,
        Type::BYTEA,
        Type::INT8,
        Type::INT8,
    ],
);

/// How often a waiting opener checks whether the owner is still alive.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Takes the account over according to the settings; reopening a store never takes it back from
/// another owner. `found` is the owner's row if it was just read.
pub(in crate::account) async fn claim(
    database: &Database,
    settings: &OwnershipSettings,
    account: &str,
    account_id: i64,
    lanes: &[&'static str],
    former: Option<&Owner>,
    mut found: Option<OwnerRow>,
) -> Result<Claimed, OpenStoreError> {
    let heartbeat = Heartbeat::of(database);
    let must_be_free = settings.takeover != Takeover::Immediate && former.is_none();
    let wait_limit = match settings.takeover {
        Takeover::WaitUntilFree(limit) if must_be_free => limit,
        _ => Duration::ZERO,
    };
    let (began, mut is_waiting, mut races) = (Instant::now(), false, None);
    loop {
        let instance = settings.instance.as_deref();
        let has_ended = |row: &OwnerRow| row.has_ended(&Process::current(), instance);
        // It was read a while ago: an owner that was alive then may have released the account.
        let is_free = |row: &OwnerRow| !must_be_free || !row.is_alive() || has_ended(row);
        let row = match found.take().filter(is_free) {
            Some(row) => row,
            None => OwnerRow::read(database, account_id).await.map_err(refused)?,
        };
        let known = former.map(Owner::snapshot).unwrap_or_default();
        if former.is_some() {
            let loss = row.loss(&known, |token| known.tokens.may_be_current(token));
            loss.map_or(Ok(()), |loss| Err(Error::from(loss)))?;
        }
        // Then it need not be free: the claim takes it from the owner that was read, or from none.
        let must_be_free = must_be_free && !(row.is_alive() && has_ended(&row));
        let in_use = must_be_free && row.is_alive();
        if in_use && began.elapsed() < wait_limit {
            if !is_waiting {
                info!(account, owner = row.name, "waiting for the account's owner to end");
                is_waiting = true;
            }
            races = None;
            sleep(POLL_INTERVAL.min(wait_limit)).await;
            continue;
        }
        let OwnerRow { name, since, .. } = row;
        let taken = OpenStoreError::OwnerAlive { account: account.to_owned(), owner: name, since };
        if in_use {
            return Err(taken);
        }
        let wanted = random_id();
        if let Some(former) = former {
            // Recorded for a later reopening, in case the answer to this claim is lost.
            former.request(wanted);
        }
        let claim = Claim {
            database: database.clone(),
            account_id,
            expected: row.token,
            wanted,
            lanes: lanes.to_vec(),
            known: known.clone(),
            must_be_free,
            owner_name: owner_name(settings),
            instance: settings.instance.clone(),
            handle_row: random_id(),
            heartbeat: heartbeat.clone(),
            interval: settings.heartbeat_interval,
        };
        let sent = Moment::now();
        if let Some((answer, handle_row)) = claim.run().await.map_err(refused)? {
            info!(account, "the account was claimed");
            metrics::ownership("claimed");
            let (known, maintenance) = answer.into_known(known, lanes, wanted);
            let owner = Owner::new(account_id, known, heartbeat.interval().clone());
            owner.prove(sent);
            let presence =
                Presence::new(heartbeat, handle_row, &owner, settings.heartbeat_interval);
            return Ok(Claimed { owner, presence, maintenance });
        }
        // Another claim was faster; the next attempt may be beaten by others again.
        let races = races.get_or_insert_with(|| database.retry().attempts());
        if !races.pause(CLAIM.name, &taken).await {
            return Err(taken);
        }
    }
}

/// A claimed account.
pub(in crate::account) struct Claimed {
    pub(in crate::account) owner: Arc<Owner>,
    pub(in crate::account) presence: Presence,
    /// The counter of each lane.
    pub(in crate::account) maintenance: BTreeMap<&'static str, i64>,
}

/// A claim of the account: from the token that was read to a new one.
struct Claim {
    database: Database,
    account_id: i64,
    /// `None` for an account that was never owned.
    expected: Option<Vec<u8>>,
    wanted: [u8; 16],
    lanes: Vec<&'static str>,
    /// The state from before.
    known: OwnershipState,
    must_be_free: bool,
    owner_name: String,
    instance: Option<String>,
    handle_row: [u8; 16],
    heartbeat: Arc<Heartbeat>,
    interval: Duration,
}

/// The values of the claimed lanes, in their order.
struct ClaimedLanes {
    positions: Vec<Position>,
    maintenance: Vec<i64>,
}

/// The claim is granted, in a transaction that is still open.
struct Granted {
    answer: ClaimedLanes,
    transaction: TransactionConnection,
}

impl Claim {
    /// `None` when the account has another token than the expected one, or is in use.
    async fn run(self) -> Result<Option<(ClaimedLanes, HandleRow)>, Error> {
        let Some(granted) = self.request().await? else { return Ok(None) };
        // From here on the account may be claimed, so it must be released if this future is
        // dropped. The task goes on then, and drops its unused result, which releases the row.
        let handle_row = HandleRow::new(&self.database, self.account_id, self.handle_row);
        let (_guard, cancellation) = Cancellation::new();
        let finish = async move { Ok((self.finish(granted, &cancellation).await?, handle_row)) };
        let task = tokio::spawn(finish);
        task.await.map_err(|error| Error::of_task(&error))?.map(Some)
    }

    /// Sends the claim, and retries it after transient failures: without its `COMMIT` an attempt
    /// has no effect.
    async fn request(&self) -> Result<Option<Granted>, Error> {
        self.database.with_retry(&CLAIM, || self.request_once()).await
    }

    async fn request_once(&self) -> Result<Option<Granted>, Error> {
        let transaction = TransactionConnection::new(self.database.connection().await?);
        let connection = transaction.get()?;
        let begin = self.database.begin(self.database.idle_timeout());
        let lifetime = self.heartbeat.lifetime(self.interval);
        let (heartbeat, expected) = (self.heartbeat.id(), self.expected.as_deref());
        let commits = |lane: &&'static str| self.known.position(lane).commits;
        let seen: Vec<i64> = self.lanes.iter().map(commits).collect();
        let Process { id, place } = self.heartbeat.process();
        let host = place.as_ref().map(|place| place.host.as_slice());
        let pid = place.as_ref().map(|place| place.pid);
        let started = place.as_ref().map(|place| place.started);
        let params: [&(dyn ToSql + Sync); 15] = [
            &self.account_id,
            &expected,
            &self.wanted.as_slice(),
            &self.lanes,
            &seen,
            &self.must_be_free,
            &self.owner_name,
            &self.handle_row.as_slice(),
            &heartbeat.as_slice(),
            &lifetime,
            &self.instance,
            id,
            &host,
            &pid,
            &started,
        ];
        let prepared = self.database.prepared(connection, &CLAIM);
        let answers = join(
            connection.batch_execute(&begin),
            self.database.run(connection, &CLAIM, prepared.as_ref(), &params),
        );
        let answers = self.database.join_with_prepare(connection, [&CLAIM], answers);
        let limit = self.database.statement_timeout();
        let answers = timeout(limit + limit / 4, answers).await;
        let (begun, rows) = answers.map_err(|_| Error::StatementTimeout)?;
        begun?;
        // The owner's open transaction may last longer than the statement timeout.
        let rows = rows.map_err(|error| match Error::from(error) {
            error if error.is_query_canceled() => Error::StatementTimeout,
            error => error,
        })?;
        let row = rows.first().ok_or(Error::Internal("a claim returned no row"))?;
        if row.try_get(0)? {
            return Ok(Some(Granted { answer: ClaimedLanes::of(row)?, transaction }));
        }
        let rolled_back = timeout(limit, connection.batch_execute("ROLLBACK")).await;
        if matches!(rolled_back, Ok(Ok(()))) {
            transaction.release();
        }
        Ok(None)
    }

    /// Commits. If that is not answered, claims the same token again, which waits for the end of
    /// the first attempt. Claims nothing after a cancellation.
    async fn finish(
        &self,
        mut granted: Granted,
        cancellation: &Cancellation,
    ) -> Result<ClaimedLanes, Error> {
        let mut attempts = self.database.retry().attempts();
        loop {
            if cancellation.is_cancelled() {
                return Err(Error::StoreClosed);
            }
            let Granted { answer, transaction } = granted;
            let connection = transaction.get()?;
            let commit = connection.batch_execute("COMMIT");
            let committed = timeout(self.database.statement_timeout(), commit).await;
            let error = match committed {
                Ok(Ok(())) => {
                    transaction.release();
                    return Ok(answer);
                }
                Ok(Err(error)) => Error::from(error),
                Err(_) => Error::StatementTimeout,
            };
            drop(transaction);
            warn!(%error, "a claim's COMMIT was not answered: claiming again");
            if cancellation.is_cancelled() || !attempts.pause("a claim's COMMIT", &error).await {
                return Err(error);
            }
            granted = match self.request().await? {
                Some(granted) => granted,
                None => return Err(self.superseded().await),
            };
        }
    }

    /// Neither token is stored: another opener was faster, or has taken over since.
    async fn superseded(&self) -> Error {
        match OwnerRow::read(&self.database, self.account_id).await {
            Ok(row) if row.is_behind(&self.known) => Error::DatabaseRolledBack,
            Ok(OwnerRow { name, since, .. }) => Error::Superseded { by: name, since },
            Err(error) => error,
        }
    }
}

impl ClaimedLanes {
    fn of(row: &Row) -> Result<Self, Error> {
        let (commits, last): (Vec<i64>, Vec<Option<&[u8]>>) = (row.try_get(1)?, row.try_get(2)?);
        let positions = commits.into_iter().zip(last);
        let positions = positions.map(|(commits, last)| {
            let last = transaction_id(last);
            Position { commits, last }
        });
        Ok(Self { positions: positions.collect(), maintenance: row.try_get(3)? })
    }

    /// The state from now on, and each lane's maintenance counter.
    fn into_known(
        self,
        mut known: OwnershipState,
        lanes: &[&'static str],
        token: [u8; 16],
    ) -> (OwnershipState, BTreeMap<&'static str, i64>) {
        known.tokens.confirm(token);
        for (lane, position) in lanes.iter().zip(self.positions) {
            known.set_position(lane, position);
        }
        (known, lanes.iter().copied().zip(self.maintenance).collect())
    }
}

fn refused(error: Error) -> OpenStoreError {
    match error {
        error if error.is_read_only_server() => OpenStoreError::ReadOnlyServer,
        Error::Database(error) => OpenStoreError::refused(error, "taking the account over"),
        error => error.into(),
    }
}

fn owner_name(settings: &OwnershipSettings) -> String {
    let host = whoami::hostname().unwrap_or_else(|_| "an unknown host".to_owned());
    format!("{} on {host}, process {}", settings.label, std::process::id())
}
