//! Runs a scope in the task of its first lane.

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

/// A scope that is queued in the first of its lanes.
pub(crate) struct ScopeJob {
    pub(super) scope: Arc<Scope>,
    /// Of the other lanes, in the order of their names.
    pub(super) others: Vec<Writer>,
    pub(super) requests: mpsc::UnboundedReceiver<Request>,
    pub(super) limit: Duration,
}

/// The scope that holds a lane: all reads of the lane see its saves.
#[derive(Default)]
pub(crate) struct RunningScope(Mutex<Option<Arc<Scope>>>);

impl RunningScope {
    pub(crate) fn get(&self) -> Option<Arc<Scope>> {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.as_ref().filter(|scope| !scope.is_over()).cloned()
    }

    fn set(&self, scope: Option<Arc<Scope>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = scope;
    }
}

/// Makes a scope visible to the reads of its lanes until dropped, also when a lane's task is
/// dropped with its runtime.
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

/// Rolls back a scope that has not ended, because a lane was closed or the task was dropped, before
/// its lanes take other jobs.
struct RollBackOnDrop<'a>(&'a Scope);

impl Drop for RollBackOnDrop<'_> {
    fn drop(&mut self) {
        if !self.0.is_over() {
            self.0.end(Phase::RolledBack);
        }
    }
}

/// Serves a scope's requests, and commits it or rolls it back.
pub(crate) async fn run(database: &Database, job: ScopeJob) {
    let ScopeJob { scope, others, mut requests, limit } = job;
    if scope.is_over() {
        return;
    }
    let owners = scope.lanes.iter().map(|lane| lane.owner.clone()).collect();
    let mut transaction = OpenTransaction::new(database.clone(), owners);
    let (mut reservations, mut shown) = (Vec::new(), None);
    let _ended = RollBackOnDrop(&scope);
    let committing = tokio::select! {
        biased;
        () = scope.abandoned(limit) => None,
        answer = async {
            // Reserved in the order of their names, so that no two scopes deadlock.
            for writer in &others {
                reservations.push(writer.reserve().await?);
            }
            shown = Some(VisibleScope::new(&scope));
            Some(serve(database, &scope, &mut transaction, &mut requests).await)
        } => answer,
    };
    // Finished before any other write, even if the caller is gone.
    if let Some(answer) = committing {
        let result = transaction.commit().await;
        scope.end(if result.is_ok() { Phase::Committed } else { Phase::RolledBack });
        let _ = answer.send(result);
    }
    drop(shown);
}

/// Serves requests until the commit is requested.
async fn serve(
    database: &Database,
    scope: &Scope,
    transaction: &mut OpenTransaction,
    requests: &mut mpsc::UnboundedReceiver<Request>,
) -> ReplySender<()> {
    // Sends keep-alives, so that `idle_in_transaction_session_timeout` does not end the
    // transaction.
    let mut keep_alive = interval(database.idle_timeout() / 3);
    keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next = None;
    loop {
        let request = match next.take() {
            Some(request) => request,
            None => tokio::select! {
                biased;
                Some(request) = requests.recv() => request,
                _ = keep_alive.tick() => {
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
                // Reads that were queued meanwhile are sent in the same round trip.
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
    transaction.apply_last_to(&lane.overlay);
    Ok(())
}

async fn read(transaction: &mut OpenTransaction, mut reads: Vec<(Query, ReplySender<Vec<Row>>)>) {
    // Skips reads whose caller is gone.
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
