//! Saves of a sync that are harmful alone, deferred to the sync's own save.
//!
//! In the middle of a sync the SDK saves each Olm session that a message has made, and deletes each key
//! request that was answered; what the messages carried, it saves at the end, with the sync token.
//! After a crash in between, the messages come again and are refused: the session has seen them, and
//! the request is no more. So these two are kept in memory and go with the next save that carries a
//! token or the account, which the SDK saves last: a session that has only *received* is stored no
//! earlier than what its messages carried. Everything else is stored when its save returns.
//!
//! They are answered before they are stored. That loses nothing, for a message that was received can
//! be received again as long as the token is not stored; what was *sent* could not be taken back, so a
//! session that has encrypted anything since it was last seen is stored at once.
//!
//! What is deferred belongs to one opening of the account. It is dropped, and never written, when the
//! store is closed or reopened, fails, or is superseded.

mod ratchet;
mod receive;
mod torn;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use self::torn::Loaded;
pub(super) use self::{
    ratchet::{Fingerprint, Sending},
    receive::{received, sent},
};
use super::{devices, key_requests, olm_sessions};
use crate::{
    Error,
    account::{
        StoreLane, cache::Rows, cancellation::Cancellation, cipher::Key, ownership::LaneOwnership,
        store::Lifecycle, write::batch::Batch,
    },
    postgres::cell::Cells,
};

/// Where a row is that may be deferred: its table, and the key that rows read together have in common.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Group {
    /// Of this sender.
    OlmSessions(Key),
    /// Of this user.
    Devices(Key),
    KeyRequests,
}

/// The key of a row within its group.
pub(super) type RowKey = (Group, Key);

struct Row {
    /// `None` when it is deleted.
    stored: Option<Cells>,
    /// Tells it from what replaces it.
    number: u64,
    taken: Option<Taken>,
}

impl Row {
    /// What a scope has saved, all reads of the account find in its overlay.
    fn is_seen(&self) -> bool {
        self.taken != Some(Taken::ByScope)
    }
}

/// A save is on its way that stores the row, or what is newer.
#[derive(Clone, Copy, PartialEq)]
enum Taken {
    /// Until it is committed, reads find the row here.
    ByLane,
    /// Reads find in the scope's overlay what it has saved.
    ByScope,
}

/// What is deferred, and what outlives an opening: how each session's sending ratchet was last seen, and
/// what the machine has loaded.
pub(super) struct Deferred(Mutex<State>);

struct State {
    opening: Arc<LaneOwnership>,
    rows: BTreeMap<Group, BTreeMap<Key, Row>>,
    count: u64,
    /// By session id. Without an entry the session has encrypted nothing; `None` is one whose row another
    /// owner has changed: then the same ratchet is no proof that it was not used here.
    ratchets: HashMap<String, Option<Fingerprint>>,
    loaded: Loaded,
}

impl Deferred {
    pub(super) fn new(opening: &Arc<LaneOwnership>) -> Arc<Self> {
        let opening = opening.clone();
        let (rows, ratchets, loaded) = Default::default();
        Arc::new(Self(Mutex::new(State { opening, rows, count: 0, ratchets, loaded })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lifecycle for Deferred {
    /// Else a sync is in its middle, or was dropped there.
    fn is_in_order(&self) -> bool {
        self.lock().current().is_none_or(|rows| rows.is_empty())
    }

    fn closed(&self, opening: &Arc<LaneOwnership>, is_whole: bool) {
        let is_current = |state: &State| Arc::ptr_eq(&state.opening, opening);
        if !is_whole || self.lock().rows.values().any(|rows| !rows.is_empty()) {
            self.record_torn_sync();
        }
        let mut state = self.lock();
        if is_current(&state) {
            state.rows.clear();
        }
    }

    fn reopened(&self, opening: &Arc<LaneOwnership>) {
        let mut state = self.lock();
        if state.opening.has_failed() {
            // What was seen may not have been stored.
            state.ratchets.clear();
        }
        state.rows.clear();
        state.opening = opening.clone();
    }
}

impl State {
    /// The rows, unless they are dropped because the account was lost or an operation failed.
    fn current(&mut self) -> Option<&mut BTreeMap<Group, BTreeMap<Key, Row>>> {
        if self.opening.check_write().is_err() {
            self.rows.clear();
            return None;
        }
        Some(&mut self.rows)
    }
}

/// What is deferred in an open account, as one operation finds it.
#[derive(Clone)]
pub(super) struct Saves {
    deferred: Arc<Deferred>,
    opening: Arc<LaneOwnership>,
    /// Whether the operation is within `atomically`, where nothing needs to be deferred.
    within: bool,
}

impl Saves {
    pub(super) fn of(deferred: &Arc<Deferred>, account: &StoreLane) -> Result<Self, Error> {
        let within = account.scope()?.is_some();
        Ok(Self { deferred: deferred.clone(), opening: account.lane().clone(), within })
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> Option<T> {
        let mut state = self.deferred.lock();
        let is_current = Arc::ptr_eq(&state.opening, &self.opening) && state.current().is_some();
        is_current.then(|| act(&mut state))
    }

    /// Whether a save may be deferred here at all.
    pub(super) fn may_defer(&self) -> bool {
        !self.within
    }

    /// Notes how a session was read. An owner that finds another ratchet than it has seen before is not
    /// the only one: it may hold, and encrypt with, what another owner has encrypted with.
    pub(super) fn record_read(&self, session_id: &str, sending: &Sending) {
        let ratchets = &mut self.deferred.lock().ratchets;
        let read = match sending {
            Sending::Used(fingerprint) => Some(*fingerprint),
            Sending::Unused | Sending::Unknown => None,
        };
        match ratchets.get_mut(session_id) {
            Some(known) if *known == read => {}
            Some(known) => *known = None,
            None if read.is_some() => {
                ratchets.insert(session_id.to_owned(), read);
            }
            None => {}
        }
    }

    /// Notes how a session is deferred or stored.
    pub(super) fn record(&self, session_id: &str, sending: Sending) {
        let ratchets = &mut self.deferred.lock().ratchets;
        match sending {
            Sending::Used(fingerprint) => {
                ratchets.insert(session_id.to_owned(), Some(fingerprint));
            }
            Sending::Unused | Sending::Unknown => {
                ratchets.remove(session_id);
            }
        }
    }

    /// Whether nothing was encrypted with the session since it was last seen.
    pub(super) fn has_only_received(&self, session_id: &str, sending: &Sending) -> bool {
        match sending {
            Sending::Unused => true,
            Sending::Used(now) => {
                self.deferred.lock().ratchets.get(session_id) == Some(&Some(*now))
            }
            Sending::Unknown => false,
        }
    }

    /// Defers rows, or says that this opening of the account has ended.
    ///
    /// # Errors
    ///
    /// [`Error::ReopenRequired`] when the caller is gone: it has torn its sync.
    pub(super) fn defer(
        &self,
        cancellation: &Cancellation,
        rows: impl IntoIterator<Item = (RowKey, Option<Cells>)>,
    ) -> Result<bool, Error> {
        if cancellation.is_cancelled() {
            return Err(Error::ReopenRequired);
        }
        let deferred = self.with(|state| {
            for ((group, key), stored) in rows {
                state.count += 1;
                let row = Row { stored, number: state.count, taken: None };
                state.rows.entry(group).or_default().insert(key, row);
            }
        });
        Ok(deferred.is_some())
    }

    /// A row that is deferred, or `None` within when it is deferred that it is deleted.
    pub(super) fn row(&self, (group, key): &RowKey) -> Option<Option<Cells>> {
        self.with(|state| {
            let row = state.rows.get(group)?.get(key)?;
            row.is_seen().then(|| row.stored.clone())
        })?
    }

    /// The deferred rows of a group. They are to be looked for before the database is asked: what is
    /// committed in between is in its answer.
    pub(super) fn rows(&self, group: &Group) -> BTreeMap<Key, Option<Cells>> {
        let rows = self.with(|state| {
            let rows = state.rows.get(group).into_iter().flatten();
            let seen = rows.filter(|(_, row)| row.is_seen());
            seen.map(|(key, row)| (key.clone(), row.stored.clone())).collect()
        });
        rows.unwrap_or_default()
    }

    /// Completes a save that stores or deletes the rows of these keys. With it go those that are
    /// deferred, which it replaces, and all others too when it `ends_sync`.
    ///
    /// # Errors
    ///
    /// [`Error::ReopenRequired`] when it ends a sync of a machine that has torn another.
    pub(super) fn complete(
        &self,
        batch: &mut Batch,
        stored: Vec<RowKey>,
        ends_sync: bool,
    ) -> Result<(), Error> {
        if ends_sync {
            self.check_machine()?;
        }
        let mut taken = Vec::new();
        self.with(|state| {
            for (group, key) in stored {
                if let Some(row) = state.rows.get_mut(&group).and_then(|rows| rows.get_mut(&key)) {
                    row.taken = Some(Taken::ByLane);
                    taken.push((group, key, row.number));
                }
            }
            let all = state.rows.iter_mut();
            let rows = all.flat_map(|(group, rows)| rows.iter_mut().map(move |row| (group, row)));
            for (group, (key, row)) in rows.filter(|(_, (_, row))| ends_sync && row.taken.is_none())
            {
                stage(batch, group, key, row.stored.as_ref());
                row.taken = Some(Taken::ByLane);
                taken.push((group.clone(), key.clone(), row.number));
            }
        });
        if taken.is_empty() {
            return Ok(());
        }
        let taken: Arc<[_]> = taken.into();
        if self.within {
            let (saves, taken) = (self.clone(), taken.clone());
            batch.on_overlay(move || saves.hide(&taken));
        }
        let saves = self.clone();
        batch.on_commit(move || saves.forget(&taken));
        Ok(())
    }

    /// Leaves to a scope's overlay what the scope has taken.
    fn hide(&self, taken: &[(Group, Key, u64)]) {
        self.with(|state| {
            for (group, key, number) in taken {
                let row = state.rows.get_mut(group).and_then(|rows| rows.get_mut(key));
                if let Some(row) = row.filter(|row| row.number == *number) {
                    row.taken = Some(Taken::ByScope);
                }
            }
        });
    }

    /// Forgets what was committed, unless it was replaced since.
    fn forget(&self, taken: &[(Group, Key, u64)]) {
        self.with(|state| {
            for (group, key, number) in taken {
                if let Some(rows) = state.rows.get_mut(group) {
                    rows.retain(|of, row| of != key || row.number != *number);
                    if rows.is_empty() {
                        state.rows.remove(group);
                    }
                }
            }
        });
    }
}

fn stage(batch: &mut Batch, group: &Group, key: &Key, stored: Option<&Cells>) {
    match (group, stored) {
        (Group::OlmSessions(sender), Some(row)) => {
            olm_sessions::stage(batch, [sender, key], row.clone());
        }
        (Group::Devices(user), Some(row)) => devices::stage(batch, [user, key], row.clone()),
        (Group::KeyRequests, None) => key_requests::stage_delete(batch, key),
        // Of sessions and devices no deletion is deferred, and of requests nothing else.
        (Group::OlmSessions(_) | Group::Devices(_), None) | (Group::KeyRequests, Some(_)) => {}
    }
}

/// Rows as they are read, with those that are deferred.
pub(super) fn over(rows: Arc<Rows>, deferred: BTreeMap<Key, Option<Cells>>) -> Arc<Rows> {
    if deferred.is_empty() {
        return rows;
    }
    let mut rows = Rows::clone(&rows);
    for (key, row) in deferred {
        match row {
            Some(row) => rows.insert([key].into(), row),
            None => rows.remove(&[key].into()),
        };
    }
    Arc::new(rows)
}
