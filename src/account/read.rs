//! Reads: from memory where the account's owner may, else with one statement.

use std::sync::Arc;

use tokio_postgres::Row;
use tracing::debug;

use super::OpenAccount;
use crate::{
    Error,
    atomically::Scope,
    cache::{Answer, Changed, Neighbours, Place, Rows, Stored, Ticket},
    codec::{Key, column},
    connection::Param,
    statement::Sql,
};

/// A table whose rows, or whose keys, the cache keeps.
pub(crate) struct Group {
    pub(crate) table: &'static str,
    /// Reads the rows of a place, whose keys are its parameters: what tells each from the others,
    /// its value, and the flag.
    pub(crate) rows: &'static Sql,
    /// Reads the fingerprints of all places that have rows.
    pub(crate) keys: Option<&'static Sql>,
    /// Reads the rows of the places that follow one: its keys, then as `rows`.
    pub(crate) neighbours: Option<&'static Sql>,
}

/// Statements that are sent together, with their parameters.
type Asks<'a> = Vec<(&'static Sql, Vec<Param<'a>>)>;

/// What is known of a place without a question.
enum Known {
    Here(Arc<Rows>),
    /// The caller's transaction has changed it, so that must be asked.
    InTransaction(Arc<Scope>),
    Ask(Ticket),
    /// There is no cache.
    Nothing,
}

impl OpenAccount {
    /// Reads rows with one statement, whose `$1` is the account.
    pub(crate) async fn query(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        self.owner.check()?;
        let params = self.with_id(params);
        let result = match self.scope()? {
            Some(scope) => scope.query(sql, &params).await,
            None => self.database.query(sql, &params).await,
        };
        self.fail_on_error(result)
    }

    /// Reads one row or none.
    pub(crate) async fn query_opt(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
    ) -> Result<Option<Row>, Error> {
        Ok(self.query(sql, params).await?.pop())
    }

    /// Reads many rows, each decoded as it arrives.
    pub(crate) async fn read_all<T>(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
        decode: impl Fn(&Row) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        if self.scope()?.is_some() {
            // On the transaction's connection, on which nothing may be left unread.
            return self.query(sql, params).await?.iter().map(decode).collect();
        }
        self.owner.check()?;
        self.fail_on_error(self.database.read_all(sql, &self.with_id(params), decode).await)
    }

    /// Reads the rows of a place.
    pub(crate) async fn rows(
        &self,
        group: &Group,
        place: &Place,
        params: &[Param<'_>],
    ) -> Result<Arc<Rows>, Error> {
        let changed_in = match self.look(place)? {
            Known::Here(rows) => return Ok(rows),
            Known::Ask(ticket) => return self.fetch(group, place, &ticket, params).await,
            Known::InTransaction(scope) => Some(scope),
            Known::Nothing => None,
        };
        let rows = Arc::new(parse(group.table, &self.query(group.rows, params).await?)?);
        if let Some(scope) = changed_in {
            scope.pending().fill(place, rows.clone());
        }
        Ok(rows)
    }

    /// Reads one row of a place, with a statement of its own where it does not pay to read them all:
    /// where they are not kept, and where somebody else is reading them already.
    pub(crate) async fn row(
        &self,
        group: &Group,
        place: &Place,
        params: &[Param<'_>],
        key: &Key,
        (sql, own_params): (&'static Sql, &[Param<'_>]),
    ) -> Result<Option<Arc<Stored>>, Error> {
        let rows = match self.look(place)? {
            Known::Here(rows) => rows,
            Known::Ask(ticket) if !ticket.question.is_busy => {
                self.fetch(group, place, &ticket, params).await?
            }
            Known::Ask(ticket) => {
                let found = self.ask(group, &ticket, Some((sql, own_params))).await?;
                Arc::new(parse(group.table, &found)?)
            }
            Known::InTransaction(_) | Known::Nothing => {
                Arc::new(parse(group.table, &self.query(sql, own_params).await?)?)
            }
        };
        Ok(rows.get(key.as_bytes()).cloned())
    }

    /// Reads rows with one statement, unless it is known that the place has none.
    pub(crate) async fn query_unless_absent(
        &self,
        group: &Group,
        place: &Place,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        match self.look(place)? {
            Known::Here(rows) if rows.is_empty() => return Ok(Vec::new()),
            Known::Ask(ticket) => match self.scope()? {
                // The statement may read other tables too, which the transaction has changed.
                Some(scope) if scope.has_saved() => {
                    self.ask(group, &ticket, None).await?;
                    if self.owner.cache.peek(place).is_some_and(|rows| rows.is_empty()) {
                        return Ok(Vec::new());
                    }
                }
                _ => return self.ask(group, &ticket, Some((group.rows, params))).await,
            },
            _ => {}
        }
        self.query(group.rows, params).await
    }

    fn look(&self, place: &Place) -> Result<Known, Error> {
        self.owner.check()?;
        if let Some(scope) = self.scope()?
            && let Some(changed) = scope.pending().look(place)
        {
            return Ok(match changed {
                Changed::Known(rows) => Known::Here(rows),
                Changed::Unknown => Known::InTransaction(scope),
            });
        }
        Ok(match self.owner.cache.look(place) {
            Some(Answer::Known(rows)) => Known::Here(rows),
            Some(Answer::Ask(ticket)) => Known::Ask(ticket),
            None => Known::Nothing,
        })
    }

    /// Asks for the rows of a place that no transaction of the caller's has changed, and keeps them.
    async fn fetch(
        &self,
        group: &Group,
        place: &Place,
        ticket: &Ticket,
        params: &[Param<'_>],
    ) -> Result<Arc<Rows>, Error> {
        let found = self.ask(group, ticket, Some((group.rows, params))).await?;
        let rows = Arc::new(parse(group.table, &found)?);
        // Meanwhile another branch of the caller's may have saved some.
        if self.scope()?.is_none_or(|scope| scope.pending().look(place).is_none()) {
            ticket.fill(rows.clone());
        }
        Ok(rows)
    }

    /// Sends a statement, and with it what the cache wants to know beside.
    async fn ask(
        &self,
        group: &Group,
        ticket: &Ticket,
        ask: Option<(&'static Sql, &[Param<'_>])>,
    ) -> Result<Vec<Row>, Error> {
        let begun = match self.scope()? {
            Some(scope) if scope.has_begun().await => Some(scope),
            _ => None,
        };
        let most_keys = ticket.question.wants_keys.unwrap_or(0);
        // Within a transaction, others would learn what it has not committed.
        let shrunk = begun.as_ref().is_some_and(|scope| scope.pending().has_shrunk(group.table));
        let keys = group.keys.filter(|_| ticket.question.wants_keys.is_some() && !shrunk);
        let neighbours = group.neighbours.zip(ticket.question.neighbours.as_ref());
        let neighbours = neighbours.filter(|_| begun.is_none());
        let count = neighbours.map_or(0, |(_, neighbours)| neighbours.count as i64);

        let mut asks: Asks<'_> = Vec::new();
        asks.extend(ask.map(|(sql, params)| (sql, self.with_id(params))));
        asks.extend(keys.map(|keys| (keys, self.with_id(&[&most_keys]))));
        asks.extend(neighbours.map(|(sql, Neighbours { after: [first, second], .. })| {
            (sql, self.with_id(&[first, second, &count]))
        }));
        let mut answers = self.fail_on_error(self.send(begun, ticket, asks).await)?.into_iter();
        let found = ask.and_then(|_| answers.next()).unwrap_or_default();
        // None came when they were given up.
        if let Some(answer) = keys.and_then(|_| answers.next()) {
            let fingerprints: Option<&[u8]> = match answer.first() {
                Some(row) => column(row, 0, group.table)?,
                None => None,
            };
            ticket.fill_keys(fingerprints.unwrap_or_default());
        }
        if let Some(answer) = neighbours.and_then(|_| answers.next()) {
            ticket.fill_neighbours(neighbours_of(group.table, &answer)?);
        }
        Ok(found)
    }

    /// Sends statements together; when they fail, the first one alone, for only that is needed.
    async fn send(
        &self,
        begun: Option<Arc<Scope>>,
        ticket: &Ticket,
        mut asks: Asks<'_>,
    ) -> Result<Vec<Vec<Row>>, Error> {
        if let Some(scope) = begun {
            let mut answers = Vec::with_capacity(asks.len());
            for (sql, params) in &asks {
                answers.push(scope.query(sql, params).await?);
            }
            return Ok(answers);
        }
        match self.database.query_together(&asks).await {
            Err(error) if asks.len() > 1 => {
                debug!(%error, "asking for less");
                ticket.ask_for_less();
                asks.truncate(1);
                self.database.query_together(&asks).await
            }
            result => result,
        }
    }

    /// The SDK swallows a failed read in the middle of a sync and saves its token: without this, the
    /// message that needed the row would be lost. A damaged row is no failure of the database's.
    fn fail_on_error<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if result.as_ref().is_err_and(|error| !matches!(error, Error::BadRow { .. })) {
            self.owner.fail();
        }
        result
    }

    pub(super) fn with_id<'a>(&'a self, params: &[Param<'a>]) -> Vec<Param<'a>> {
        std::iter::once(&self.owner.account_id as Param<'_>).chain(params.iter().copied()).collect()
    }
}

fn parse(table: &'static str, rows: &[Row]) -> Result<Rows, Error> {
    rows.iter().map(|row| row_of(table, row, 0)).collect()
}

/// The rows of several places, each of which has one.
fn neighbours_of(table: &'static str, rows: &[Row]) -> Result<Vec<(Place, Rows)>, Error> {
    let places = rows.iter().map(|row| {
        let keys = [&Key::of(row, 0, table)?, &Key::of(row, 1, table)?];
        Ok((Place::new(table, keys), Rows::from([row_of(table, row, 1)?])))
    });
    places.collect()
}

fn row_of(table: &'static str, row: &Row, first: usize) -> Result<(Vec<u8>, Arc<Stored>), Error> {
    let (data, flag) = (column(row, first + 1, table)?, column(row, first + 2, table)?);
    Ok((column(row, first, table)?, Arc::new(Stored { data, flag })))
}
