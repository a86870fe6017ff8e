//! Reads: from memory where the account's owner may, else with one statement.
//!
//! While a scope has the lane, reads see what it has saved. What it has changed and memory does not
//! know is read on its connection; so is what the pool has no idle connection for, because the scope's
//! own caller may wait for the reader. Everything else is read outside, so that only committed rows
//! come into the cache.

mod somewhere;

use std::sync::Arc;

use tokio_postgres::Row;
use tracing::debug;

use super::OpenAccount;
use crate::{
    Error,
    account::{
        cache::{Answer, Changed, Neighbours, Place, Rows, Stored, Ticket},
        cipher::{Key, column},
        write::atomically::Scope,
    },
    postgres::{
        database::{Database, Param},
        statement::Sql,
    },
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

/// Their rows, and whether it is sure that these are committed.
type Answers = (Vec<Vec<Row>>, bool);

/// What is known of a place without a question.
enum Known {
    Here(Arc<Rows>),
    /// The scope has changed it; how often at that time.
    Changed(Arc<Scope>, u64),
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
        self.lane.check()?;
        let params = self.with_id(params);
        self.fail_on_error(self.query_somewhere(sql, params).await)
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
        self.lane.check()?;
        let params = self.with_id(params);
        let asks = vec![(sql, params.clone())];
        let outside = |database: Database| {
            let (params, decode) = (&params, &decode);
            async move { database.read_all(sql, params, decode).await }
        };
        // On the scope's connection nothing may be left unread.
        let within = |_: &Scope, rows: Vec<Vec<Row>>| rows.iter().flatten().map(&decode).collect();
        self.fail_on_error(self.ask_somewhere(&asks, true, outside, within).await)
    }

    /// Reads the rows of a place.
    pub(crate) async fn rows(
        &self,
        group: &Group,
        place: &Place,
        params: &[Param<'_>],
    ) -> Result<Arc<Rows>, Error> {
        loop {
            let found = match self.look(place)? {
                Known::Here(rows) => return Ok(rows),
                Known::Ask(ticket) => return self.fetch(group, &ticket, params).await,
                Known::Nothing => self.query(group.rows, params).await?,
                Known::Changed(scope, seen) => {
                    let asks = vec![(group.rows, self.with_id(params))];
                    let found = self.fail_on_error(self.ask_within(&scope, &asks).await)?;
                    let Some(mut found) = found else { continue };
                    let found = found.pop().unwrap_or_default();
                    let rows = Arc::new(parse(group.table, &found)?);
                    if let Some(pending) = scope.pending(&self.lane) {
                        pending.fill(place, seen, rows.clone());
                    }
                    return Ok(rows);
                }
            };
            return Ok(Arc::new(parse(group.table, &found)?));
        }
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
                self.fetch(group, &ticket, params).await?
            }
            Known::Ask(ticket) => {
                let (found, _) = self.ask(group, &ticket, Some((sql, own_params))).await?;
                Arc::new(parse(group.table, &found)?)
            }
            Known::Changed(..) | Known::Nothing => {
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
            Known::Ask(ticket) => match self.overlay()? {
                // Not the place, but another table that the statement reads.
                Some(scope) if scope.changes(group.rows) => {
                    self.ask(group, &ticket, None).await?;
                    if self.lane.cache.peek(place).is_some_and(|rows| rows.is_empty()) {
                        return Ok(Vec::new());
                    }
                }
                _ => {
                    let (found, _) = self.ask(group, &ticket, Some((group.rows, params))).await?;
                    return Ok(found);
                }
            },
            _ => {}
        }
        self.query(group.rows, params).await
    }

    fn look(&self, place: &Place) -> Result<Known, Error> {
        self.lane.check()?;
        if let Some(scope) = self.overlay()?
            && let Some(changed) = scope.pending(&self.lane).and_then(|seen| seen.look(place))
        {
            return Ok(match changed {
                Changed::Known(rows) => Known::Here(rows),
                Changed::Unknown(seen) => Known::Changed(scope, seen),
            });
        }
        Ok(match self.lane.cache.look(place) {
            Some(Answer::Known(rows)) => Known::Here(rows),
            Some(Answer::Ask(ticket)) => Known::Ask(ticket),
            None => Known::Nothing,
        })
    }

    /// Asks for the rows of a place that no scope has changed, and keeps them.
    async fn fetch(
        &self,
        group: &Group,
        ticket: &Ticket,
        params: &[Param<'_>],
    ) -> Result<Arc<Rows>, Error> {
        let (found, is_committed) = self.ask(group, ticket, Some((group.rows, params))).await?;
        let rows = Arc::new(parse(group.table, &found)?);
        if is_committed {
            ticket.fill(rows.clone());
        }
        Ok(rows)
    }

    /// Sends a statement, and with it what the cache wants to know beside. Also tells whether it is
    /// sure that the rows are committed.
    async fn ask(
        &self,
        group: &Group,
        ticket: &Ticket,
        ask: Option<(&'static Sql, &[Param<'_>])>,
    ) -> Result<(Vec<Row>, bool), Error> {
        let most_keys = ticket.question.wants_keys.unwrap_or(0);
        let keys = group.keys.filter(|_| ticket.question.wants_keys.is_some());
        let neighbours = group.neighbours.zip(ticket.question.neighbours.as_ref());
        let count = neighbours.map_or(0, |(_, neighbours)| neighbours.count as i64);

        let mut asks: Asks<'_> = Vec::new();
        asks.extend(ask.map(|(sql, params)| (sql, self.with_id(params))));
        asks.extend(keys.map(|keys| (keys, self.with_id(&[&most_keys]))));
        asks.extend(neighbours.map(|(sql, Neighbours { after: [first, second], .. })| {
            (sql, self.with_id(&[first, second, &count]))
        }));
        let (answers, is_committed) = self.fail_on_error(self.send(ticket, asks).await)?;
        let mut answers = answers.into_iter();
        let found = ask.and_then(|_| answers.next()).unwrap_or_default();
        if !is_committed {
            return Ok((found, false));
        }
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
        Ok((found, true))
    }

    /// Sends statements about what no scope has changed, together; when they fail, the first one
    /// alone, for only that is needed.
    async fn send(&self, ticket: &Ticket, mut asks: Asks<'_>) -> Result<Answers, Error> {
        match self.send_once(&asks).await {
            Err(error) if asks.len() > 1 => {
                debug!(%error, "asking for less");
                ticket.ask_for_less();
                asks.truncate(1);
                self.send_once(&asks).await
            }
            result => result,
        }
    }

    async fn send_once(&self, asks: &Asks<'_>) -> Result<Answers, Error> {
        let outside =
            |database: Database| async move { Ok((database.query_together(asks).await?, true)) };
        // What was saved is shown before it is sent: if nothing is shown now, nothing was sent then.
        let within = |scope: &Scope, answers| {
            Ok((answers, !asks.iter().any(|(sql, _)| scope.has_written(sql))))
        };
        self.ask_somewhere(asks, false, outside, within).await
    }

    /// The SDK swallows a failed read in the middle of a sync and saves its token: without this, the
    /// message that needed the row would be lost. A damaged row is no failure of the database's. Another
    /// task's scope that has the lane is left to end before.
    fn fail_on_error<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if result.as_ref().is_err_and(|error| !matches!(error, Error::BadRow { .. })) {
            match self.overlay() {
                Ok(Some(scope)) if !scope.is_current() => scope.fail_at_end(),
                _ => self.lane.fail(),
            }
        }
        result
    }

    pub(super) fn with_id<'a>(&'a self, params: &[Param<'a>]) -> Vec<Param<'a>> {
        std::iter::once(&self.lane.owner.account_id as Param<'_>)
            .chain(params.iter().copied())
            .collect()
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
