//! The cross-process lock of a store: leases by the server's clock.

use tokio_postgres::types::Type;

use super::StoreLane;
use crate::{Error, account::cipher::column, postgres::statement::Sql};

const TABLE: &str = "lease_locks";

// A transaction of its own, neither queued behind saves nor part of a scope: a lease of 500 ms may
// be renewed every 50 ms.
static TAKE: Sql = Sql::new(
    "lease_locks.take",
    "SELECT {schema}.take_lease($1, $2, $3, $4, $5, $6)",
    &[Type::INT8, Type::TEXT, Type::BYTEA, Type::BYTEA, Type::FLOAT8, Type::BYTEA],
);

pub(super) const STATEMENTS: &[&Sql] = &[&TAKE];

impl StoreLane {
    /// Takes or extends a lease, and returns its generation; `None` when another holder has it. A
    /// duration of 0 releases it.
    pub(crate) async fn take_lease(
        &self,
        duration_ms: u32,
        key: &str,
        holder: &str,
    ) -> Result<Option<u64>, Error> {
        let (key, holder) = (self.codec.key(TABLE, key), self.codec.key(TABLE, holder));
        let (lane, duration) = (self.kind().name, f64::from(duration_ms));
        let row = self.write_outside_scope(&TAKE, &[&lane, &key, &holder, &duration]).await?;
        let generation: Option<i64> = match &row {
            Some(row) => column(row, 0, TABLE)?,
            None => None,
        };
        Ok(generation.map(i64::unsigned_abs))
    }
}
