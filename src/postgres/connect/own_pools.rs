//! The pools that this crate built, with their connectors.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering},
};

use deadpool_postgres::Pool;

use super::{Connector, Inner};
use crate::postgres::shared_connection::address;

/// The connectors of these pools, by the pool's address. A connector is dropped with its pool, so a
/// later pool at the same address is not mistaken for it.
static CONNECTORS: LazyLock<Mutex<HashMap<usize, Weak<Inner>>>> = LazyLock::new(Mutex::default);

impl Connector {
    /// Registers the pool that uses this connector.
    pub(crate) fn register(self, pool: &Pool) {
        let mut connectors = connectors();
        connectors.retain(|_, connector| connector.strong_count() > 0);
        connectors.insert(address(pool), std::sync::Arc::downgrade(&self.0));
    }

    /// The connector of a pool, if this crate built it. Must be dropped before the pool.
    pub(crate) fn of(pool: &Pool) -> Option<Self> {
        connectors().get(&address(pool)).and_then(Weak::upgrade).map(Self)
    }

    /// Whether statements may be prepared by name on its connections.
    pub(crate) fn prepares_statements(&self) -> bool {
        self.0.prepared_statements
    }

    /// The connection settings, which identify the server.
    pub(crate) fn target(&self) -> String {
        let server = &self.0.server;
        format!(
            "{:?} {:?} {:?} {:?} {:?}",
            server.addresses, server.user, server.dbname, server.tls, server.template
        )
    }

    /// How many COMMITs on this pool succeeded although their wait for a synchronous standby was
    /// cancelled. The server reports this only in a notice, which belongs to no statement: when the
    /// number rises, every commit in flight on the pool has an unknown outcome.
    pub(crate) fn unreplicated_commits(&self) -> u64 {
        self.0.unreplicated_commits.load(Ordering::Acquire)
    }
}

fn connectors() -> MutexGuard<'static, HashMap<usize, Weak<Inner>>> {
    CONNECTORS.lock().unwrap_or_else(PoisonError::into_inner)
}
