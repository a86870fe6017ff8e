//! Sends saves and queries while the transaction is open, always in one round trip.

use std::{
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
};

use deadpool_postgres::Object;
use futures_util::{TryFutureExt, TryStreamExt, future::join};
use tokio::time::timeout;
use tokio_postgres::{Row, types::Type};

use crate::{
    DatabaseError, Error,
    account::write::{
        atomically::request::{Query, Text},
        exchange::{Exchange, Failure, Response, in_order},
    },
    postgres::database::{Database, Param},
};

/// What is sent after the saves.
pub(super) enum Pipelined<'a> {
    Nothing,
    Reads(&'a [Query]),
    Application(&'a Query),
}

/// The answers to the queries.
pub(super) struct PipelinedRows {
    pub(super) rows: Vec<Result<Vec<Row>, Error>>,
    /// How many rows the application's statement returned or changed.
    pub(super) row_count: u64,
}

/// A savepoint around reads: a read that fails does not abort the transaction, and one that
/// succeeds has changed nothing.
const BEFORE_READS: &str = "SAVEPOINT matrix_sdk_read";
const AFTER_READ: &str = "ROLLBACK TO SAVEPOINT matrix_sdk_read";
const AFTER_READS: &str = "RELEASE SAVEPOINT matrix_sdk_read";

/// Records, before a statement of the application, the number of saves. `ROLLBACK TO SAVEPOINT`
/// with an older savepoint reverts it together with the saves.
const SET_SAVE_COUNT: &str = "SELECT set_config('matrix_sdk.saves', $1, true)";

/// Whether this is still the transaction of the guard, with all saves in it.
const CHECK_SAVE_COUNT: &str = "
SELECT coalesce(current_setting('matrix_sdk.tx', true), '') <> ''
   AND coalesce(current_setting('matrix_sdk.saves', true), '') = $1";

impl Pipelined<'_> {
    pub(super) fn is_application(&self) -> bool {
        matches!(self, Self::Application(_))
    }

    fn queries(&self) -> &[Query] {
        match self {
            Self::Nothing => &[],
            Self::Reads(queries) => queries,
            Self::Application(query) => std::slice::from_ref(*query),
        }
    }
}

/// Sends the saves, the queries, and the check that the saves are still in the transaction. After
/// an error the transaction is over.
pub(super) async fn send(
    database: &Database,
    connection: &Object,
    saves: &Exchange<'_>,
    pipelined: &Pipelined<'_>,
    save_count: Option<usize>,
) -> Result<PipelinedRows, Error> {
    let row_count = AtomicU64::new(0);
    let queries = pipelined.queries();
    let params: Vec<Vec<Param<'_>>> = queries.iter().map(Query::params).collect();
    let save_count = save_count.map(|saves| saves.to_string()).unwrap_or_default();
    let save_count_query = |sql| {
        let save_count = &save_count;
        Box::pin(async move { connection.query_typed(sql, &[(save_count, Type::TEXT)]).await })
    };
    let simple = |sql| Box::pin(connection.batch_execute(sql).map_ok(|()| Vec::new()));

    let mut messages: Vec<Message<'_>> = Vec::new();
    match pipelined {
        Pipelined::Nothing => {}
        Pipelined::Reads(_) => messages.push(Message::frame(simple(BEFORE_READS))),
        Pipelined::Application(_) => {
            messages.push(Message::frame(save_count_query(SET_SAVE_COUNT)))
        }
    }
    for (query, params) in queries.iter().zip(&params) {
        messages.push(Message::query(answer(database, connection, query, params, &row_count)));
        if !pipelined.is_application() {
            messages.push(Message::frame(simple(AFTER_READ)));
        }
    }
    if let Pipelined::Reads(_) = pipelined {
        messages.push(Message::frame(simple(AFTER_READS)));
    }
    messages.push(Message::frame(save_count_query(CHECK_SAVE_COUNT)));

    let (is_query, answers): (Vec<_>, Vec<_>) =
        messages.into_iter().map(|message| (message.is_query, message.answer)).unzip();
    let parts = saves.parts().saturating_add(u32::try_from(answers.len()).unwrap_or(u32::MAX));
    let answers = timeout(database.response_timeout(parts), in_order(answers));
    // Polled in this order, so that the saves are sent first.
    let (saved, answers) = join(saves.exchange(database, connection), answers).await;
    let saved = saved.map_err(Failure::into_error);
    if let (Pipelined::Application(_), Ok(answers)) = (pipelined, &answers) {
        check_is_within(saved.is_ok(), is_query.iter().zip(answers))?;
    }
    saved?;
    let answers = answers.map_err(|_| Error::StatementTimeout)?;
    let rows = query_results(pipelined, is_query.into_iter().zip(answers))?;
    Ok(PipelinedRows { rows, row_count: row_count.into_inner() })
}

/// Fails if a statement of the application succeeded behind a failure: nothing runs in a failed
/// transaction, so a pooler has run it outside, and it must not run again.
fn check_is_within<'a>(
    mut is_open: bool,
    answers: impl Iterator<Item = (&'a bool, &'a Result<Vec<Row>, tokio_postgres::Error>)>,
) -> Result<(), Error> {
    for (is_query, answer) in answers {
        if *is_query && answer.is_ok() && !is_open {
            let message = "a statement of the application ran outside of its transaction";
            return Err(DatabaseError::permanent(message).into());
        }
        is_open &= answer.is_ok();
    }
    Ok(())
}

/// A message that is sent after the saves.
struct Message<'a> {
    /// Whether it is a query: its failure alone does not end the transaction.
    is_query: bool,
    answer: Response<'a>,
}

impl<'a> Message<'a> {
    fn frame(answer: Response<'a>) -> Self {
        Self { is_query: false, answer }
    }

    fn query(answer: Response<'a>) -> Self {
        Self { is_query: true, answer }
    }
}

/// The answer to a query, which is sent at the first poll.
fn answer<'a>(
    database: &'a Database,
    connection: &'a Object,
    query: &'a Query,
    params: &'a [Param<'a>],
    row_count: &'a AtomicU64,
) -> Response<'a> {
    match &query.text {
        Text::Store(sql) => {
            let prepared = database.prepared(connection, sql);
            Box::pin(async move {
                let answer = database.run(connection, sql, prepared.as_ref(), params);
                // Behind the query, whose locks the transaction has then, and before its savepoint ends.
                join(answer, database.prepare(connection, sql)).await.0
            })
        }
        Text::Application(sql, types) => Box::pin(async move {
            let params: Vec<_> = params.iter().copied().zip(types.iter().cloned()).collect();
            let mut answer = pin!(connection.query_typed_raw(sql, params).await?);
            let mut rows = Vec::new();
            while let Some(row) = answer.try_next().await? {
                rows.push(row);
            }
            row_count.store(answer.rows_affected().unwrap_or_default(), Ordering::Relaxed);
            Ok(rows)
        }),
    }
}

/// The results of the queries, or the error that ended the transaction.
fn query_results(
    pipelined: &Pipelined<'_>,
    answers: impl Iterator<Item = (bool, Result<Vec<Row>, tokio_postgres::Error>)>,
) -> Result<Vec<Result<Vec<Row>, Error>>, Error> {
    let (mut found, mut first, mut is_over, mut last) = (Vec::new(), None, false, Vec::new());
    for (is_query, answer) in answers {
        match answer.map_err(DatabaseError::from) {
            Ok(rows) if is_query => found.push(Ok(rows)),
            Ok(rows) => last = rows,
            Err(error) => {
                is_over |= !is_query || error.invalidates_connection();
                first.get_or_insert_with(|| error.clone());
                found.push(Err(error.into()));
            }
        }
    }
    if is_over && let Some(error) = first {
        return Err(error.into());
    }
    match last.first().map(|row| row.try_get(0)) {
        Some(Ok(true)) => Ok(found),
        _ if pipelined.is_application() => Err(Error::TransactionControl),
        _ => Err(DatabaseError::broken("a BEGIN was lost").into()),
    }
}
