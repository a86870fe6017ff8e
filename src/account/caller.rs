//! Whether somebody still waits for what was begun.

use std::sync::{Arc, Weak};

/// Tells what runs elsewhere, or waits for its turn, whether the future that wants it was dropped.
pub(crate) struct Caller(Weak<()>);

impl Caller {
    /// The first is for the future to hold.
    pub(crate) fn new() -> (Arc<()>, Self) {
        let held = Arc::new(());
        let caller = Self(Arc::downgrade(&held));
        (held, caller)
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }
}
