//! Whether somebody still waits for what was begun.

use std::sync::{Arc, Weak};

/// Tells what runs elsewhere, or waits for its turn, whether the future that wants it was dropped.
pub(crate) struct Cancellation(Weak<()>);

impl Cancellation {
    /// The first is for the future to hold.
    pub(crate) fn new() -> (Arc<()>, Self) {
        let guard = Arc::new(());
        let cancellation = Self(Arc::downgrade(&guard));
        (guard, cancellation)
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.strong_count() == 0
    }
}
