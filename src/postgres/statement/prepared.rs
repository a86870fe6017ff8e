//! The statements that are prepared on each connection.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use deadpool_postgres::{Object, StatementCache};
use tokio_postgres::Statement;

/// The prepared statements of each connection, by the address of its statement cache. A weak reference keeps
/// the address from being reused.
#[derive(Default)]
pub(crate) struct Prepared(Mutex<HashMap<usize, (Weak<StatementCache>, OfConnection)>>);

/// By name; `None` while a statement is being prepared.
type OfConnection = HashMap<&'static str, Option<Statement>>;

impl Prepared {
    pub(crate) fn get(&self, connection: &Object, name: &str) -> Option<Statement> {
        self.lock().get(&address(connection))?.1.get(name)?.clone()
    }

    /// Reserves the preparation of a statement. `None` if it is prepared, or another caller prepares it: not to be
    /// waited for, as that caller's future may not be polled.
    pub(crate) fn reserve(&self, connection: &Object, name: &'static str) -> Option<Preparing<'_>> {
        let address = address(connection);
        let mut connections = self.lock();
        if !connections.contains_key(&address) {
            connections.retain(|_, (cache, _)| cache.strong_count() > 0);
        }
        let new = || (Arc::downgrade(&connection.statement_cache), HashMap::new());
        let (_, statements) = connections.entry(address).or_insert_with(new);
        if statements.contains_key(name) {
            return None;
        }
        statements.insert(name, None);
        Some(Preparing { all: self, address, name })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, (Weak<StatementCache>, OfConnection)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A statement that is being prepared; dropped before it is, another caller may prepare it.
pub(crate) struct Preparing<'a> {
    all: &'a Prepared,
    address: usize,
    name: &'static str,
}

impl Preparing<'_> {
    pub(crate) fn finish(self, statement: Statement) {
        if let Some((_, statements)) = self.all.lock().get_mut(&self.address) {
            statements.insert(self.name, Some(statement));
        }
    }
}

impl Drop for Preparing<'_> {
    fn drop(&mut self) {
        if let Some((_, statements)) = self.all.lock().get_mut(&self.address)
            && statements.get(self.name).is_some_and(Option::is_none)
        {
            statements.remove(self.name);
        }
    }
}

fn address(connection: &Object) -> usize {
    Arc::as_ptr(&connection.statement_cache).addr()
}
