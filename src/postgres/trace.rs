//! Spans by OpenTelemetry's conventions for clients of databases.
//!
//! Created in the caller's task, so that they are children of the store's operations. No field
//! holds data.

use std::{future::Future, time::Instant};

use tracing::{Instrument, Span, field::Empty, info_span};

use crate::{
    Error,
    postgres::{metrics, statement::Sql},
};

/// Runs a statement, with its retries, in a span.
pub(crate) async fn query<T>(
    sql: &'static Sql,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let span = span(sql.operation());
    span.record("db.query.summary", sql.name);
    if let Some(table) = sql.own_table() {
        span.record("db.collection.name", table);
    }
    let began = Instant::now();
    let result = traced(span, work).await;
    metrics::statement(sql.name, began.elapsed(), result.is_err());
    result
}

/// Awaits a commit, or a statement of the application, in a span.
pub(crate) async fn operation<T>(
    name: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let began = Instant::now();
    let result = traced(span(name), work).await;
    metrics::operation(name, began.elapsed(), result.is_err());
    result
}

fn span(operation: &'static str) -> Span {
    info_span!(
        "database",
        "otel.kind" = "client",
        "db.system.name" = "postgresql",
        "db.operation.name" = operation,
        "db.query.summary" = Empty,
        "db.collection.name" = Empty,
        "db.response.status_code" = Empty,
        "error.type" = Empty,
        "otel.status_code" = Empty,
    )
}

async fn traced<T>(span: Span, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let result = work.instrument(span.clone()).await;
    if let Err(error) = &result {
        if let Some(code) = error.sqlstate() {
            span.record("db.response.status_code", code);
        }
        span.record("error.type", error.type_name());
        span.record("otel.status_code", "ERROR");
    }
    result
}
