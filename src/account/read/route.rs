//! Chooses the connection of a read: outside of the scope that holds the lane, or the scope's.

use std::future::Future;

use futures_util::future::join_all;
use tokio_postgres::Row;

use super::Queries;
use crate::{
    Error,
    account::{
        StoreLane,
        write::atomically::{Query, Scope},
    },
    postgres::{
        database::{Database, Param},
        statement::Sql,
    },
};

impl StoreLane {
    /// Reads rows with one statement; a failure does not fail the lane.
    pub(in crate::account) async fn query_routed(
        &self,
        sql: &'static Sql,
        params: Vec<Param<'_>>,
    ) -> Result<Vec<Row>, Error> {
        let queries = vec![(sql, params)];
        let outside = |database: Database| {
            let queries = &queries;
            async move { database.query_pipelined(queries).await }
        };
        let mut answers = self.route(&queries, true, outside, |_, answers| Ok(answers)).await?;
        Ok(answers.pop().unwrap_or_default())
    }

    /// Sends queries outside of the scope that holds the lane, or on the scope's connection: if the
    /// scope `may_have_changed` what they read, and if no other connection is idle. If the scope
    /// ends meanwhile, they are sent again.
    pub(super) async fn route<T, F>(
        &self,
        queries: &Queries<'_>,
        may_have_changed: bool,
        outside: impl Fn(Database) -> F,
        within: impl Fn(&Scope, Vec<Vec<Row>>) -> Result<T, Error>,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        loop {
            let Some(scope) = self.overlay()? else { return outside(self.database.clone()).await };
            let changed = may_have_changed && queries.iter().any(|(sql, _)| scope.changes(sql));
            if !changed {
                match outside(self.database.without_waiting()).await {
                    Err(Error::PoolTimeout) => {}
                    result => return result,
                }
            }
            if !queries.iter().all(|(sql, _)| scope.shows(sql)) {
                // Waits for a connection of the pool, or for the end of the scope, which returns
                // one.
                tokio::select! {
                    result = outside(self.database.clone()) => match result {
                        Err(Error::PoolTimeout) => {}
                        result => return result,
                    },
                    () = scope.ended() => {}
                }
            } else if let Some(answers) = self.query_within(&scope, queries).await? {
                return within(&scope, answers);
            }
        }
    }

    /// Sends queries on the scope's connection; `None` when it has ended.
    pub(super) async fn query_within(
        &self,
        scope: &Scope,
        queries: &Queries<'_>,
    ) -> Result<Option<Vec<Vec<Row>>>, Error> {
        let Some((first, _)) = queries.first() else { return Ok(Some(Vec::new())) };
        let queries = queries.iter().map(|(sql, params)| Query::store(sql, params));
        let queries: Vec<Query> = queries.collect::<Result<_, _>>()?;
        let send = || {
            let reads: Vec<_> = queries.iter().cloned().map(|query| scope.read(query)).collect();
            async {
                let answers: Option<Vec<_>> = join_all(reads).await.into_iter().collect();
                answers.map(|answers| answers.into_iter().collect()).transpose()
            }
        };
        self.database.with_retry(first, send).await
    }
}
