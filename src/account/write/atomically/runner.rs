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
    open::OpenTransaction,
    request::{Answer, Query, Request},
};
use crate::account::write::lane::Lane;

/// A scope that waits for its turn in the lane.
pub(crate) struct ScopeJob {
    pub(super) scope: Arc<Scope>,
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

/// Also when the lane's task ends with its runtime.
struct Leave<'a>(&'a Running);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

/// Works off a scope's requests, and commits it or rolls it back.
pub(crate) async fn run(lane: Arc<Lane>, job: ScopeJob) {
    let ScopeJob { scope, mut requests, limit } = job;
    if scope.is_over() {
        return;
    }
    lane.running.set(Some(scope.clone()));
    let _leave = Leave(&lane.running);
    let mut transaction = OpenTransaction::new(lane.clone());
    let committing = tokio::select! {
        biased;
        () = scope.given_up(limit) => None,
        answer = serve(&lane, &scope, &mut transaction, &mut requests) => Some(answer),
    };
    // Its caller may be gone: it is finished all the same, before anything else is written.
    if let Some(answer) = committing {
        let result = transaction.commit().await;
        scope.end(if result.is_ok() { Phase::Committed } else { Phase::RolledBack });
        let _ = answer.send(result);
    }
}

/// Works off requests until the commit is asked for.
async fn serve(
    lane: &Lane,
    scope: &Scope,
    transaction: &mut OpenTransaction,
    requests: &mut mpsc::UnboundedReceiver<Request>,
) -> Answer<()> {
    // The server would end the transaction of a client that is silent.
    let mut alive = interval(lane.database.idle_timeout() / 3);
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
            Request::Save(stage, answer) => {
                let result = match lane.stage(stage, scope.overlay.clone()).await {
                    Ok(batch) => transaction.push(batch, &scope.overlay),
                    Err(error) => Err(error),
                };
                let _ = answer.send(result);
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

async fn read(transaction: &mut OpenTransaction, mut reads: Vec<(Query, Answer<Vec<Row>>)>) {
    // Who asked may be gone.
    reads.retain(|(_, answer)| !answer.is_closed());
    if reads.is_empty() {
        return;
    }
    let (queries, answers): (Vec<_>, Vec<_>) = reads.into_iter().unzip();
    match transaction.read(&queries).await {
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
