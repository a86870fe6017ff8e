//! What a store tells the engine of itself.

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
    /// Names the lane and the part.
    pub(crate) name: &'static str,
    pub(crate) migrations: &'static [Migration],
    /// All of its statements, to be prepared together.
    pub(crate) statements: &'static [&'static [&'static Sql]],
    /// Tables of which other tasks see the rows of a transaction only when it is committed.
    pub(crate) seen_when_committed: &'static [&'static str],
}

impl StoreKind {
    pub(crate) fn migrations(&self) -> Migrations {
        Migrations { part: self.name, steps: self.migrations }
    }
}

/// What a store does when it is closed or opened again.
pub(crate) trait Lifecycle: Send + Sync + 'static {
    /// Whether a store that can be written to need not be opened again.
    fn is_in_order(&self) -> bool {
        true
    }

    /// The store was closed. `is_whole`: all of its operations had ended, and none had failed.
    fn closed(&self, _lane: &Arc<LaneOwnership>, _is_whole: bool) {}

    /// The store is about to be open again.
    fn reopened(&self, _lane: &Arc<LaneOwnership>) {}
}
