//! What crosses the wire while the transaction is open: always one round trip.

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
        exchange::{Answer, Exchange, Failure, in_order},
    },
    postgres::database::{Database, Param},
};

/// What is asked behind the saves.
pub(super) enum Asked<'a> {
    Nothing,
    Reads(&'a [Query]),
    Application(&'a Query),
}

/// The answers to what was asked.
pub(super) struct Answered {
    pub(super) rows: Vec<Result<Vec<Row>, Error>>,
    /// How many rows the application's statement returned or changed.
    pub(super) row_count: u64,
}

/// A read that fails is undone alone; one that succeeds has changed nothing.
const BEFORE_READS: &str = "SAVEPOINT matrix_sdk_read";
const BEHIND_READ: &str = "ROLLBACK TO SAVEPOINT matrix_sdk_read";
const BEHIND_READS: &str = "RELEASE SAVEPOINT matrix_sdk_read";

/// Notes, before a statement of the application, how many saves there are. `ROLLBACK TO SAVEPOINT` with
/// an older savepoint undoes it together with them.
const SET_WITNESS: &str = "SELECT set_config('matrix_sdk.saves', $1, true)";

/// Whether the guard's transaction is still the one that we are in, with all that was saved.
const ASK_WITNESS: &str = "
SELECT coalesce(current_setting('matrix_sdk.tx', true), '') <> ''
   AND coalesce(current_setting('matrix_sdk.saves', true), '') = $1";

impl Asked<'_> {
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

/// Sends the saves, what is asked, and the question whether they are still in the transaction. After
/// an error that is over.
pub(super) async fn send(
    database: &Database,
    connection: &Object,
    saves: &Exchange<'_>,
    asked: &Asked<'_>,
    witness: Option<usize>,
) -> Result<Answered, Error> {
    let row_count = AtomicU64::new(0);
    let queries = asked.queries();
    let params: Vec<Vec<Param<'_>>> = queries.iter().map(Query::params).collect();
    let witness = witness.map(|saves| saves.to_string()).unwrap_or_default();
    let ask_witness = |sql| {
        let witness = &witness;
        Box::pin(async move { connection.query_typed(sql, &[(witness, Type::TEXT)]).await })
    };
    let simple = |sql| Box::pin(connection.batch_execute(sql).map_ok(|()| Vec::new()));

    let mut messages: Vec<Message<'_>> = Vec::new();
    match asked {
        Asked::Nothing => {}
        Asked::Reads(_) => messages.push(Message::frame(simple(BEFORE_READS))),
        Asked::Application(_) => messages.push(Message::frame(ask_witness(SET_WITNESS))),
    }
    for (query, params) in queries.iter().zip(&params) {
        messages
            .push(Message::asked(answer(database, connection, query, params, &row_count).await?));
        if !asked.is_application() {
            messages.push(Message::frame(simple(BEHIND_READ)));
        }
    }
    if let Asked::Reads(_) = asked {
        messages.push(Message::frame(simple(BEHIND_READS)));
    }
    messages.push(Message::frame(ask_witness(ASK_WITNESS)));

    let (is_asked, answers): (Vec<_>, Vec<_>) =
        messages.into_iter().map(|message| (message.is_asked, message.answer)).unzip();
    let parts = saves.parts().saturating_add(u32::try_from(answers.len()).unwrap_or(u32::MAX));
    let answers = timeout(database.time_for(parts), in_order(answers));
    // Polled in this order, so that the saves leave first.
    let (saved, answers) = join(saves.exchange(database, connection), answers).await;
    saved.map_err(Failure::into_error)?;
    let answers = answers.map_err(|_| Error::StatementTimeout)?;
    let rows = judge(asked, is_asked.into_iter().zip(answers))?;
    Ok(Answered { rows, row_count: row_count.into_inner() })
}

/// A message behind the saves.
struct Message<'a> {
    /// Whether its failure is its own.
    is_asked: bool,
    answer: Answer<'a>,
}

impl<'a> Message<'a> {
    fn frame(answer: Answer<'a>) -> Self {
        Self { is_asked: false, answer }
    }

    fn asked(answer: Answer<'a>) -> Self {
        Self { is_asked: true, answer }
    }
}

/// The answer to a query, which is sent at the first poll.
async fn answer<'a>(
    database: &'a Database,
    connection: &'a Object,
    query: &'a Query,
    params: &'a [Param<'a>],
    row_count: &'a AtomicU64,
) -> Result<Answer<'a>, Error> {
    Ok(match &query.text {
        Text::Store(sql) => {
            // Ready at once.
            let is_prepared = database.is_prepared(connection);
            let statement = database.prepare(connection, is_prepared, sql).await?;
            Box::pin(async move { database.run(connection, sql, statement.as_ref(), params).await })
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
    })
}

/// The answers to what was asked, or why the transaction is over.
fn judge(
    asked: &Asked<'_>,
    answers: impl Iterator<Item = (bool, Result<Vec<Row>, tokio_postgres::Error>)>,
) -> Result<Vec<Result<Vec<Row>, Error>>, Error> {
    let (mut found, mut first, mut is_over, mut last) = (Vec::new(), None, false, Vec::new());
    for (is_asked, answer) in answers {
        match answer.map_err(DatabaseError::from) {
            Ok(rows) if is_asked => found.push(Ok(rows)),
            Ok(rows) => last = rows,
            Err(error) => {
                is_over |= !is_asked || error.spoils_connection();
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
        _ if asked.is_application() => Err(Error::TransactionControl),
        _ => Err(DatabaseError::broken("a BEGIN was lost").into()),
    }
}
