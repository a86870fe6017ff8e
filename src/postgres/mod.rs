//! The PostgreSQL layer: connections, statements, migrations. Independent of accounts and stores.

pub(crate) mod cell;
pub(crate) mod connect;
pub(crate) mod database;
pub(crate) mod metrics;
pub(crate) mod migrations;
mod pool;
pub(crate) mod retry;
pub(crate) mod schema;
pub(crate) mod shared_connection;
pub(crate) mod statement;
pub(crate) mod trace;
pub(crate) mod transaction_connection;
