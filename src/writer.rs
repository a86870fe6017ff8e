//! The account's one writer lane: a task that takes writes in order, from pickling to commit, and
//! finishes what it began even when the caller is gone.
//!
//! Two saves that committed in the other order would make a restart reuse Megolm indices, and a
//! caller that drops its future must neither tear a write nor let it overtake a later one.
//!
//! A transaction is one round trip: `BEGIN`, the statements and `COMMIT` are on the wire before the
//! first answer is awaited. `COMMIT` of a failed transaction answers without an error, so every
//! answer is looked at.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use backon::Retryable;
use deadpool_postgres::Object;
use futures_util::{
    TryFutureExt,
    future::{BoxFuture, MaybeDone, maybe_done},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};
use tokio_postgres::Statement;
use tracing::{debug, warn};

use crate::{
    Error,
    batch::{Batch, Column},
    connection::{Database, Param, backoff, is_transient},
    statement::Sql,
};

type Answer<'a> = BoxFuture<'a, Result<(), tokio_postgres::Error>>;
type Stage = Box<dyn FnOnce() -> BoxFuture<'static, Result<Batch, Error>> + Send>;

enum Job {
    Write(Stage, oneshot::Sender<Result<(), Error>>),
    Close(oneshot::Sender<()>),
}

/// The sending end of the lane. The task ends when the last one is dropped, or on [`Self::close`].
#[derive(Debug)]
pub(crate) struct Writer {
    jobs: mpsc::UnboundedSender<Job>,
}

impl Writer {
    /// Starts the lane of one account.
    ///
    /// `failed` is shared with the readers: once an operation has failed, nothing more is written.
    pub(crate) fn start(database: Database, account_id: i64, failed: Arc<AtomicBool>) -> Self {
        let (jobs, queue) = mpsc::unbounded_channel();
        tokio::spawn(run(Lane { database, account_id, failed }, queue));
        Self { jobs }
    }

    /// Queues a write at the first poll, in the order of the calls, and waits for its commit.
    pub(crate) async fn write<F>(
        &self,
        stage: impl FnOnce() -> F + Send + 'static,
    ) -> Result<(), Error>
    where
        F: Future<Output = Result<Batch, Error>> + Send + 'static,
    {
        let (answer, done) = oneshot::channel();
        let stage: Stage = Box::new(move || Box::pin(stage()));
        self.jobs.send(Job::Write(stage, answer)).map_err(|_| Error::StoreClosed)?;
        // The lane is gone without an answer only when its runtime is shut down.
        done.await.map_err(|_| Error::StoreClosed)?
    }

    /// Waits until everything queued before has been written, then ends the lane.
    pub(crate) async fn close(&self) {
        let (answer, done) = oneshot::channel();
        if self.jobs.send(Job::Close(answer)).is_ok() {
            let _ = done.await;
        }
    }
}

async fn run(lane: Lane, mut queue: mpsc::UnboundedReceiver<Job>) {
    while let Some(job) = queue.recv().await {
        match job {
            Job::Write(stage, answer) => {
                // The caller may be gone; the write is finished all the same.
                let _ = answer.send(lane.write(stage).await);
            }
            Job::Close(answer) => {
                let _ = answer.send(());
                return;
            }
        }
    }
}

struct Lane {
    database: Database,
    account_id: i64,
    /// Set by any operation whose failure was handed up: what the SDK holds in memory may be ahead
    /// of the database, and a write now could make the loss permanent.
    failed: Arc<AtomicBool>,
}

/// How a transaction failed.
enum Failure {
    /// Nothing of it took effect.
    RolledBack(Error),
    /// The answer to `COMMIT` is missing, so it may or may not have taken effect.
    Unknown(Error),
}

impl Lane {
    async fn write(&self, stage: Stage) -> Result<(), Error> {
        if self.failed.load(Ordering::Acquire) {
            return Err(Error::ReopenRequired);
        }
        let result = self.stage_and_commit(stage).await;
        if result.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        result
    }

    async fn stage_and_commit(&self, stage: Stage) -> Result<(), Error> {
        let batch = stage().await?;
        if !batch.is_empty() {
            let started = Instant::now();
            self.commit(&batch).await?;
            let (rows, bytes) = (batch.rows(), batch.bytes());
            debug!(rows, bytes, elapsed = ?started.elapsed(), "committed");
        }
        batch.committed();
        Ok(())
    }

    /// Sends the batch, again when it surely had no effect and the reason may pass.
    async fn commit(&self, batch: &Batch) -> Result<(), Error> {
        let may_pass = |failure: &Failure| match failure {
            Failure::RolledBack(error) => is_transient(error),
            Failure::Unknown(_) => false,
        };
        let result = (|| self.commit_once(batch)).retry(backoff()).when(may_pass).await;
        result.map_err(|failure| match failure {
            Failure::RolledBack(error) => error,
            Failure::Unknown(error) => {
                warn!("the answer to a COMMIT is missing: the store must be reopened");
                error
            }
        })
    }

    async fn commit_once(&self, batch: &Batch) -> Result<(), Failure> {
        let connection = self.database.connection().await.map_err(Failure::RolledBack)?;
        let statements = batch.statements();
        let mut prepared = Vec::with_capacity(statements.len());
        for (sql, _) in &statements {
            // Awaits the wire only for a statement that is new to this connection.
            let statement = self.database.prepare(&connection, sql).await;
            prepared.push(statement.map_err(|error| Failure::RolledBack(error.into()))?);
        }

        let begin = self.begin();
        // A statement that cannot be encoded is never sent, and COMMIT must not pass it.
        let unsent = AtomicBool::new(false);
        let mut answers: Vec<Answer<'_>> = vec![Box::pin(connection.batch_execute(&begin))];
        for ((sql, columns), statement) in statements.iter().zip(&prepared) {
            let answer = self.execute(&connection, sql, statement.as_ref(), columns);
            answers.push(Box::pin(answer.inspect_err(|_| unsent.store(true, Ordering::Relaxed))));
        }
        answers.push(Box::pin(async {
            let end = if unsent.load(Ordering::Relaxed) { "ROLLBACK" } else { "COMMIT" };
            connection.batch_execute(end).await
        }));

        // The server's own timeout comes first; this one is for a server that does not answer.
        let limit = self.database.statement_timeout() * (answers.len() as u32);
        let Ok(answers) = timeout(limit, in_order(answers)).await else {
            drop(Object::take(connection));
            return Err(Failure::Unknown(Error::StatementTimeout));
        };
        let Some(index) = answers.iter().position(Result::is_err) else { return Ok(()) };
        let is_commit = index + 1 == answers.len();
        let Some(Err(error)) = answers.into_iter().nth(index) else { return Ok(()) };
        let error = self.database.release(connection, error);
        let rolled_back = !is_commit && (error.is_answer() || error.is_unsendable());
        Err(if rolled_back {
            Failure::RolledBack(error.into())
        } else {
            Failure::Unknown(error.into())
        })
    }

    /// The isolation level is named, because a statement that waited must see what it waited for.
    fn begin(&self) -> String {
        let milliseconds = self.database.statement_timeout().as_millis();
        format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
             SET LOCAL statement_timeout = {milliseconds}"
        )
    }

    /// Sends one statement at the first poll.
    async fn execute(
        &self,
        connection: &Object,
        sql: &'static Sql,
        statement: Option<&Statement>,
        columns: &[Column<'_>],
    ) -> Result<(), tokio_postgres::Error> {
        let params: Vec<Param<'_>> = std::iter::once(&self.account_id as Param<'_>)
            .chain(columns.iter().map(|column| column as Param<'_>))
            .collect();
        match statement {
            Some(statement) => connection.execute(statement, &params).await?,
            None => {
                let params: Vec<_> = params.into_iter().zip(sql.types.iter().cloned()).collect();
                connection.execute_typed(self.database.statements().text(sql), &params).await?
            }
        };
        Ok(())
    }
}

/// Polls all futures in order each time, so that their messages leave in order.
async fn in_order<T>(futures: Vec<BoxFuture<'_, T>>) -> Vec<T> {
    let mut futures: Vec<MaybeDone<_>> = futures.into_iter().map(maybe_done).collect();
    poll_fn(|context| {
        let mut pending = false;
        for future in &mut futures {
            pending |= Pin::new(future).poll(context).is_pending();
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    futures.iter_mut().filter_map(|future| Pin::new(future).take_output()).collect()
}
