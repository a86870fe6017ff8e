//! A connection on which a transaction is open.

use std::pin::pin;

use deadpool_postgres::Object;
use futures_util::FutureExt;

use crate::Error;

/// A connection that is closed when dropped: returned to the pool, its open transaction would go on
/// and include the next user's statements.
pub(crate) struct TransactionConnection(Option<Object>);

const RETURNED: Error =
    Error::Internal("a transaction's connection was used after it was returned to the pool");

impl TransactionConnection {
    pub(crate) fn new(connection: Object) -> Self {
        Self(Some(connection))
    }

    pub(crate) fn get(&self) -> Result<&Object, Error> {
        self.0.as_ref().ok_or(RETURNED)
    }

    pub(crate) fn get_mut(&mut self) -> Result<&mut Object, Error> {
        self.0.as_mut().ok_or(RETURNED)
    }

    /// Sends a keep-alive: an empty query, whose answer is not awaited.
    pub(crate) fn send_keep_alive(&self) {
        if let Some(connection) = &self.0 {
            // Sent at the first poll; the driver discards the answer.
            let _ = pin!(connection.simple_query("")).as_mut().now_or_never();
        }
    }

    /// Returns the connection to the pool, unless the answer is an error after which it must not be
    /// used.
    pub(crate) fn release_unless_spoiled<T>(self, answer: &Result<T, Error>) {
        if answer.as_ref().err().is_none_or(|error| !error.invalidates_connection()) {
            self.release();
        }
    }

    /// Returns the connection to the pool. No transaction may be open on it.
    pub(crate) fn release(mut self) {
        drop(self.0.take());
    }
}

impl Drop for TransactionConnection {
    fn drop(&mut self) {
        drop(self.0.take().map(Object::take));
    }
}
