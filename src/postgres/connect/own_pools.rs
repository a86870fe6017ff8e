//! Which pools are our own, and what is known of them.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering},
};

use deadpool_postgres::Pool;

use super::{Connector, Inner};
use crate::postgres::shared_connection::address;

/// The connectors of our pools, by the pool's address. A connector lives in its pool and ends with it,
/// so that another pool which gets the same address is not taken for ours.
static CONNECTORS: LazyLock<Mutex<HashMap<usize, Weak<Inner>>>> = LazyLock::new(Mutex::default);

impl Connector {
    /// Notes the pool that this connector was given to.
    pub(crate) fn register(self, pool: &Pool) {
        let mut connectors = connectors();
        connectors.retain(|_, connector| connector.strong_count() > 0);
        connectors.insert(address(pool), std::sync::Arc::downgrade(&self.0));
    }

    /// What makes the connections of a pool, if that is one of ours. To be dropped before the pool.
    pub(crate) fn of(pool: &Pool) -> Option<Self> {
        connectors().get(&address(pool)).and_then(Weak::upgrade).map(Self)
    }

    /// Whether statements may be prepared by name on its connections.
    pub(crate) fn prepares_statements(&self) -> bool {
        self.0.prepared_statements
    }

    /// The way to the server, as the configuration names it.
    pub(crate) fn target(&self) -> String {
        let server = &self.0.server;
        format!(
            "{:?} {:?} {:?} {:?} {:?}",
            server.addresses, server.user, server.dbname, server.tls, server.template
        )
    }

    /// Rises when a COMMIT on a connection of this pool succeeds although its wait for a synchronous
    /// standby was cut short. The server says so in a warning only, which belongs to no statement; so
    /// whatever commits on the pool meanwhile is of unknown outcome.
    pub(crate) fn unreplicated_commits(&self) -> u64 {
        self.0.unreplicated_commits.load(Ordering::Acquire)
    }
}

fn connectors() -> MutexGuard<'static, HashMap<usize, Weak<Inner>>> {
    CONNECTORS.lock().unwrap_or_else(PoisonError::into_inner)
}
