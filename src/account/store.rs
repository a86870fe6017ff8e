//! What a store declares to the engine.

use std::sync::Arc;

use crate::{
    account::ownership::LaneOwnership,
    postgres::{
        migrations::{Migration, Migrations},
        statement::Sql,
    },
};

/// A kind of store: its part of the schema, and its lane in each account.
pub(crate) struct StoreKind {
    /// Names the lane and the part of the schema.
    pub(crate) name: &'static str,
    pub(crate) migrations: &'static [Migration],
    /// All of its statements, to be prepared together.
    pub(crate) statements: &'static [&'static [&'static Sql]],
    /// Tables whose uncommitted rows are hidden from the reads of other tasks.
    pub(crate) hidden_until_commit: &'static [&'static str],
}

impl StoreKind {
    pub(crate) fn migrations(&self) -> Migrations {
        Migrations { part: self.name, steps: self.migrations }
    }
}

/// Hooks of a store for closing and reopening.
pub(crate) trait Lifecycle: Send + Sync + 'static {
    /// Whether `reopen()` may do nothing if the store accepts writes.
    fn can_skip_reopening(&self) -> bool {
        true
    }

    /// Called when `reopen()` does nothing else.
    fn reopening_skipped(&self) {}

    /// Called after the store was closed. `is_clean`: all of its operations had ended, and none had
    /// failed.
    fn closed(&self, _lane: &Arc<LaneOwnership>, _is_clean: bool) {}

    /// Called before the store is open again.
    fn reopened(&self, _lane: &Arc<LaneOwnership>) {}
}
