//! A connection on which a transaction is open.

use std::pin::pin;

use deadpool_postgres::Object;
use futures_util::FutureExt;

use crate::Error;

/// A connection that is closed when it is dropped: back in the pool, a transaction that has not
/// ended would go on, and take in whatever is asked of it next.
pub(crate) struct TransactionConnection(Option<Object>);

impl TransactionConnection {
    pub(crate) fn new(connection: Object) -> Self {
        Self(Some(connection))
    }

    pub(crate) fn get(&self) -> Result<&Object, Error> {
        self.0.as_ref().ok_or(Error::Internal("a connection was given back"))
    }

    /// Sends a statement whose answer nobody awaits, so that the server knows we are here.
    pub(crate) fn ping(&self) {
        if let Some(connection) = &self.0 {
            // Sent at the first poll; an answer that nobody takes is passed over.
            let _ = pin!(connection.simple_query("")).as_mut().now_or_never();
        }
    }

    /// Gives the connection back to the pool, unless what failed on it must not be used again.
    pub(crate) fn release_unless_spoiled<T>(self, answer: &Result<T, Error>) {
        if answer.as_ref().err().is_none_or(|error| !error.spoils_connection()) {
            self.release();
        }
    }

    /// Gives the connection back to the pool: no transaction is open on it.
    pub(crate) fn release(mut self) {
        drop(self.0.take());
    }
}

impl Drop for TransactionConnection {
    fn drop(&mut self) {
        drop(self.0.take().map(Object::take));
    }
}
