//! Logins that are refused in the server's place, as poolers do.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

#[derive(Default)]
pub(super) struct Logins {
    /// How many logins are still to be refused, and with which SQLSTATE.
    refusals: Mutex<(usize, &'static str)>,
    count: AtomicUsize,
}

impl Logins {
    pub(super) fn refuse(&self, count: usize, sqlstate: &'static str) {
        *self.refusals.lock().unwrap() = (count, sqlstate);
        self.count.store(0, SeqCst);
    }

    pub(super) fn refusals_left(&self) -> usize {
        self.refusals.lock().unwrap().0
    }

    pub(super) fn count(&self) -> usize {
        self.count.load(SeqCst)
    }

    /// Counts a login. With which SQLSTATE it is refused, if it is.
    pub(super) fn next_refusal(&self) -> Option<&'static str> {
        self.count.fetch_add(1, SeqCst);
        let mut refusals = self.refusals.lock().unwrap();
        refusals.0 = refusals.0.checked_sub(1)?;
        Some(refusals.1)
    }
}
