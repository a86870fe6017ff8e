//! The lane's part in a scope.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tokio_postgres::Row;

use super::{
    Phase, Scope,
    request::{Query, ReplySender, Request},
};
use crate::{
    Error,
    account::write::{
        lane::{self, Stage, Writer},
        open_transaction::OpenTransaction,
    },
    postgres::database::Database,
};

/// A scope that waits for its turn in the first of its lanes.
pub(crate) struct ScopeJob {
    pub(super) scope: Arc<Scope>,
    /// Of the other lanes, in the order of their names.
    pub(super) others: Vec<Writer>,
    pub(super) requests: mpsc::UnboundedReceiver<Request>,
    pub(super) limit: Duration,
}

/// The scope that has an account's lane: what it saved is seen by all reads of the account.
#[derive(Default)]
pub(crate) struct Running(Mutex<Option<Arc<Scope>>>);

impl Running {
    pub(crate) fn get(&self) -> Option<Arc<Scope>> {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.as_ref().filter(|scope| !scope.is_over()).cloned()
    }

    fn set(&self, scope: Option<Arc<Scope>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = scope;
    }
}

/// The scope is seen by the reads of its lanes; also when a lane's task ends with its runtime, no longer
/// than that.
struct VisibleScope<'a>(&'a Scope);

impl<'a> VisibleScope<'a> {
    fn new(scope: &'a Arc<Scope>) -> Self {
        scope.lanes.iter().for_each(|lane| lane.running.set(Some(scope.clone())));
        Self(scope)
    }
}

impl Drop for VisibleScope<'_> {
    fn drop(&mut self) {
        self.0.lanes.iter().for_each(|lane| lane.running.set(None));
    }
}

/// A scope that is left without an end, by a lane that is closed or a task that is ended, is rolled back
/// before its lanes go on.
struct RollBackOnDrop<'a>(&'a Scope);

impl Drop for RollBackOnDrop<'_> {
    fn drop(&mut self) {
        if !self.0.is_over() {
            self.0.end(Phase::RolledBack);
        }
    }
}

/// Works off a scope's requests, and commits it or rolls it back.
pub(crate) async fn run(database: &Database, job: ScopeJob) {
    let ScopeJob { scope, others, mut requests, limit } = job;
    if scope.is_over() {
        return;
    }
    let owners = scope.lanes.iter().map(|lane| lane.owner.clone()).collect();
    let mut transaction = OpenTransaction::new(database.clone(), owners);
    let (mut loans, mut shown) = (Vec::new(), None);
    let _ended = RollBackOnDrop(&scope);
    let committing = tokio::select! {
        biased;
        () = scope.abandoned(limit) => None,
        answer = async {
            // In the order of their names: no two scopes wait for each other.
            for writer in &others {
                loans.push(writer.reserve().await?);
            }
            shown = Some(VisibleScope::new(&scope));
            Some(serve(database, &scope, &mut transaction, &mut requests).await)
        } => answer,
    };
    // Its caller may be gone: it is finished all the same, before anything else is written.
    if let Some(answer) = committing {
        let result = transaction.commit().await;
        scope.end(if result.is_ok() { Phase::Committed } else { Phase::RolledBack });
        let _ = answer.send(result);
    }
    drop(shown);
}

/// Works off requests until the commit is asked for.
async fn serve(
    database: &Database,
    scope: &Scope,
    transaction: &mut OpenTransaction,
    requests: &mut mpsc::UnboundedReceiver<Request>,
) -> ReplySender<()> {
    // The server would end the transaction of a client that is silent.
    let mut alive = interval(database.idle_timeout() / 3);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next = None;
    loop {
        let request = match next.take() {
            Some(request) => request,
            None => tokio::select! {
                biased;
                Some(request) = requests.recv() => request,
                _ = alive.tick() => {
                    transaction.keep_alive();
                    continue;
                }
            },
        };
        match request {
            Request::Save(lane_index, stage, answer) => {
                let _ = answer.send(save(scope, transaction, lane_index, stage).await);
            }
            Request::Read(query, answer) => {
                let mut reads = vec![(query, answer)];
                // What others have asked meanwhile goes along in the same round trip.
                while let Ok(request) = requests.try_recv() {
                    match request {
                        Request::Read(query, answer) => reads.push((query, answer)),
                        other => {
                            next = Some(other);
                            break;
                        }
                    }
                }
                read(transaction, reads).await;
            }
            Request::Application(query, answer) => {
                let _ = answer.send(transaction.run(&query).await);
            }
            Request::Commit(answer) => return answer,
        }
    }
}

async fn save(
    scope: &Scope,
    transaction: &mut OpenTransaction,
    lane_index: usize,
    stage: Stage,
) -> Result<(), Error> {
    let lane = scope
        .lanes
        .get(lane_index)
        .ok_or(Error::Internal("a save in a lane that is not the scope's"))?;
    let batch = lane::stage(&lane.owner, stage, lane.overlay.clone()).await?;
    transaction.stage(lane_index, batch)?;
    transaction.show_last(&lane.overlay);
    Ok(())
}

async fn read(transaction: &mut OpenTransaction, mut reads: Vec<(Query, ReplySender<Vec<Row>>)>) {
    // Who asked may be gone.
    reads.retain(|(_, answer)| !answer.is_closed());
    if reads.is_empty() {
        return;
    }
    let (queries, answers): (Vec<_>, Vec<_>) = reads.into_iter().unzip();
    match transaction.query(&queries).await {
        Ok(results) => {
            for (result, answer) in results.into_iter().zip(answers) {
                let _ = answer.send(result);
            }
        }
        Err(error) => {
            for answer in answers {
                let _ = answer.send(Err(error.clone()));
            }
        }
    }
}
