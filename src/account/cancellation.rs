//! Whether a caller still waits for an operation.

use std::sync::{Arc, Weak};

/// Shows a task whether the future that waits for it was dropped.
pub(crate) struct Cancellation(Weak<()>);

impl Cancellation {
    /// The future holds the first value; dropping it cancels.
    pub(crate) fn new() -> (Arc<()>, Self) {
        let guard = Arc::new(());
        let cancellation = Self(Arc::downgrade(&guard));
        (guard, cancellation)
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.strong_count() == 0
    }
}
