//! The connections on which the statements of a schema are prepared.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use deadpool_postgres::{Object, StatementCache};

/// The connections on which all statements have been prepared, by the address of their statement
/// cache. A weak reference keeps the address from being reused.
#[derive(Default)]
pub(crate) struct Prepared(Mutex<HashMap<usize, Weak<StatementCache>>>);

impl Prepared {
    pub(crate) fn has(&self, connection: &Object) -> bool {
        self.lock().contains_key(&Arc::as_ptr(&connection.statement_cache).addr())
    }

    pub(crate) fn add(&self, connection: &Object) {
        let cache = &connection.statement_cache;
        let mut caches = self.lock();
        caches.retain(|_, cache| cache.strong_count() > 0);
        caches.insert(Arc::as_ptr(cache).addr(), Arc::downgrade(cache));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Weak<StatementCache>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
