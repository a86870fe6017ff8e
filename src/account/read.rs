//! Reads: from memory where the account's owner may, else with one statement.

use std::sync::Arc;

use tokio_postgres::Row;

use super::OpenAccount;
use crate::{
    Error,
    atomically::Scope,
    cache::{Answer, Cache, Neighbours, Place, Rows, Stored, Ticket},
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

/// Statements that are sent together, with their parameters but for the account.
type Asks<'a> = Vec<(&'static Sql, Vec<Param<'a>>)>;

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

    /// Whether rows are kept, so that it pays to read whole groups of them.
    pub(crate) fn keeps_rows(&self) -> bool {
        self.owner.cache.is_open()
    }

    /// Reads the rows of a place.
    pub(crate) async fn rows(
        &self,
        group: &Group,
        place: &Place,
        params: &[Param<'_>],
    ) -> Result<Arc<Rows>, Error> {
        let ticket = match self.look(place)? {
            Known::Here(rows) => return Ok(rows),
            Known::InTransaction(scope) => {
                let rows = Arc::new(rows(group.table, &self.query(group.rows, params).await?)?);
                scope.pending().fill(place.clone(), rows.clone());
                return Ok(rows);
            }
            Known::Nothing => {
                let found = self.query(group.rows, params).await?;
                return Ok(Arc::new(rows(group.table, &found)?));
            }
            Known::Ask(ticket) => ticket,
        };
        let found = self.ask(group, &ticket, params).await?;
        let rows = Arc::new(rows(group.table, &found)?);
        self.owner.cache.fill(&ticket, place.clone(), rows.clone());
        Ok(rows)
    }

    /// Reads rows with one statement, unless it is known that the place has none.
    pub(crate) async fn query_unless_absent(
        &self,
        group: &Group,
        place: &Place,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        match self.look(place)? {
            Known::Here(rows) if rows.is_empty() => Ok(Vec::new()),
            Known::Ask(ticket) => self.ask(group, &ticket, params).await,
            _ => self.query(group.rows, params).await,
        }
    }

    fn look(&self, place: &Place) -> Result<Known, Error> {
        self.owner.check()?;
        if let Some(scope) = self.scope()?
            && let Some(changed) = scope.pending().look(place)
        {
            return Ok(changed.map_or(Known::InTransaction(scope), Known::Here));
        }
        Ok(match self.owner.cache.look(place) {
            Some(Answer::Known(rows)) => Known::Here(rows),
            Some(Answer::Ask(ticket)) => Known::Ask(ticket),
            None => Known::Nothing,
        })
    }

    /// Asks the database, and for what the cache wants beside the rows in question.
    async fn ask(
        &self,
        group: &Group,
        ticket: &Ticket,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        let mut wanted = Wanted { cache: &self.owner.cache, ticket, came: false };
        let most_keys = ticket.wants_keys.unwrap_or(0);
        let mut asks: Asks<'_> = vec![(group.rows, self.with_id(params))];
        let keys = group.keys.filter(|_| ticket.wants_keys.is_some());
        asks.extend(keys.map(|keys| (keys, self.with_id(&[&most_keys]))));
        let neighbours = group.neighbours.zip(ticket.neighbours.as_ref());
        let count = neighbours.map_or(0, |(_, neighbours)| neighbours.count as i64);
        asks.extend(neighbours.map(|(sql, Neighbours { after: [first, second], .. })| {
            (sql, self.with_id(&[first, second, &count]))
        }));
        let result = self.query_committed(&asks).await;
        let mut answers = self.fail_on_error(result)?;
        if neighbours.is_some() {
            let neighbours = neighbours_of(group.table, &answers.pop().unwrap_or_default())?;
            self.owner.cache.fill_neighbours(ticket, neighbours);
        }
        if keys.is_some() {
            wanted.take(group.table, &answers.pop().unwrap_or_default())?;
        }
        Ok(answers.pop().unwrap_or_default())
    }

    /// Asks for what no open transaction has changed: outside of it, unless it has begun.
    async fn query_committed(&self, asks: &Asks<'_>) -> Result<Vec<Vec<Row>>, Error> {
        match self.scope()? {
            Some(scope) if scope.has_begun().await => {
                let mut answers = Vec::new();
                for (sql, params) in asks {
                    answers.push(scope.query(sql, params).await?);
                }
                Ok(answers)
            }
            _ => self.database.query_together(asks).await,
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

/// What is known of a place without a question.
enum Known {
    Here(Arc<Rows>),
    /// The caller's transaction has changed it, so that must be asked.
    InTransaction(Arc<Scope>),
    Ask(Ticket),
    /// There is no cache.
    Nothing,
}

/// Lets others ask for the keys if the caller is dropped before they come.
struct Wanted<'a> {
    cache: &'a Cache,
    ticket: &'a Ticket,
    came: bool,
}

impl Wanted<'_> {
    fn take(&mut self, table: &'static str, answer: &[Row]) -> Result<(), Error> {
        let fingerprints: Option<&[u8]> = match answer.first() {
            Some(row) => column(row, 0, table)?,
            None => None,
        };
        self.cache.fill_keys(self.ticket, Some(fingerprints.unwrap_or_default()));
        self.came = true;
        Ok(())
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        if !self.came && self.ticket.wants_keys.is_some() {
            self.cache.fill_keys(self.ticket, None);
        }
    }
}

fn rows(table: &'static str, rows: &[Row]) -> Result<Rows, Error> {
    rows.iter().map(|row| stored(table, row, 0)).collect()
}

/// The rows of several places, each of which has one.
fn neighbours_of(table: &'static str, rows: &[Row]) -> Result<Vec<(Place, Rows)>, Error> {
    let places = rows.iter().map(|row| {
        let keys = [&Key::of(row, 0, table)?, &Key::of(row, 1, table)?];
        Ok((Place::new(table, keys), Rows::from([stored(table, row, 1)?])))
    });
    places.collect()
}

fn stored(table: &'static str, row: &Row, first: usize) -> Result<(Vec<u8>, Arc<Stored>), Error> {
    let (data, flag) = (column(row, first + 1, table)?, column(row, first + 2, table)?);
    Ok((column(row, first, table)?, Arc::new(Stored { data, flag })))
}
