//! Saves of a sync that are harmful alone, deferred to the sync's own save.
//!
//! In the middle of a sync the SDK saves each Olm session that a message has created or used, and deletes
//! each key request that was answered; it saves the content of the messages at the end, with the sync
//! token.
//! After a crash in between, the homeserver sends the messages again and they are refused: the session
//! has already decrypted them, and the request no longer exists. So these two saves are deferred in
//! memory to the next save that carries a token or the account, which the SDK saves last: a session that
//! has only *received* is stored no earlier than the content of its messages. Everything else is stored
//! when its save returns.
//!
//! A deferred save returns before its rows are stored. That loses nothing: a received message is sent
//! again as long as the token is not stored. A message that the session *encrypted* may have been sent,
//! so a session that has encrypted anything since it was last read or saved is stored at once.
//!
//! Deferred rows belong to one opening of the lane. They are dropped, and never written, when the store
//! is closed or reopened, fails, or is superseded.

mod interrupted;
mod ratchet;
mod receive;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use self::interrupted::Loaded;
pub(super) use self::{
    ratchet::{Fingerprint, SendingRatchet},
    receive::received_session,
};
use super::{
    devices, key_requests, olm_sessions,
    outbound_group_sessions::{Marks, SharedSessions},
};
use crate::{
    Error,
    account::{
        StoreLane, cache::Rows, cancellation::Cancellation, cipher::Key, ownership::LaneOwnership,
        store::Lifecycle, write::batch::Batch,
    },
    postgres::cell::Cells,
};

/// Rows that may be deferred and are read together: their table, and their common key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Group {
    /// By sender.
    OlmSessions(Key),
    /// By user.
    Devices(Key),
    KeyRequests,
}

/// The key of a row within its group.
pub(super) type RowKey = (Group, Key);

struct Row {
    /// `None` for a deferred deletion.
    stored: Option<Cells>,
    /// Distinguishes the row from one that replaces it.
    version: u64,
    in_flight: Option<InFlight>,
}

impl Row {
    /// Whether reads find the row here, and not in a scope's overlay.
    fn is_visible(&self) -> bool {
        self.in_flight != Some(InFlight::Scope)
    }
}

/// An uncommitted save that stores the row, or a newer one.
#[derive(Clone, Copy, PartialEq)]
enum InFlight {
    /// Reads find the row here until the commit.
    Lane,
    /// Reads find the row in the scope's overlay.
    Scope,
}

/// The deferred rows and the outbound sessions of an opening, and what outlives it: the last known sending
/// ratchet of each session, the marks of outbound sessions, and the machine's loads of the account.
pub(super) struct Deferred(Mutex<State>);

struct State {
    lane: Arc<LaneOwnership>,
    rows: BTreeMap<Group, BTreeMap<Key, Row>>,
    count: u64,
    /// By session id. A session without an entry has encrypted nothing. `None`: another owner has changed
    /// the row, so an equal ratchet does not prove that the session was not used here.
    ratchets: HashMap<String, Option<Fingerprint>>,
    marks: Marks,
    shared: SharedSessions,
    loaded: Loaded,
}

impl Deferred {
    pub(super) fn new(lane: &Arc<LaneOwnership>) -> Arc<Self> {
        let lane = lane.clone();
        let (rows, ratchets, marks, shared, loaded) = Default::default();
        Arc::new(Self(Mutex::new(State { lane, rows, count: 0, ratchets, marks, shared, loaded })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lifecycle for Deferred {
    /// Deferred rows mean that a sync is in progress, or was dropped before its end.
    fn can_skip_reopening(&self) -> bool {
        self.lock().current().is_none_or(|rows| rows.is_empty())
    }

    fn closed(&self, lane: &Arc<LaneOwnership>, is_clean: bool) {
        let is_current = |state: &State| Arc::ptr_eq(&state.lane, lane);
        if !is_clean || self.lock().rows.values().any(|rows| !rows.is_empty()) {
            self.record_interrupted_sync();
        }
        let mut state = self.lock();
        if is_current(&state) {
            state.rows.clear();
            state.shared.forget();
        }
    }

    /// A new machine begins with what is stored, as after an opening: the sessions of the one before may hold
    /// room keys for others that it encrypted, but did not save.
    fn reopening_skipped(&self) {
        self.lock().shared.forget();
    }

    fn reopened(&self, lane: &Arc<LaneOwnership>) {
        let mut state = self.lock();
        if state.lane.has_failed() {
            // The known ratchets may not have been stored.
            state.ratchets.clear();
        }
        state.rows.clear();
        state.marks.forget_commits();
        state.shared.forget();
        state.lane = lane.clone();
    }
}

impl State {
    /// The rows, unless they are dropped because the account was lost or an operation failed.
    fn current(&mut self) -> Option<&mut BTreeMap<Group, BTreeMap<Key, Row>>> {
        if self.lane.check_write().is_err() {
            self.rows.clear();
            return None;
        }
        Some(&mut self.rows)
    }
}

/// The deferred saves of an open account, for one operation.
#[derive(Clone)]
pub(super) struct Saves {
    deferred: Arc<Deferred>,
    lane: Arc<LaneOwnership>,
    /// Whether the operation is within `atomically`, where nothing needs to be deferred.
    in_scope: bool,
}

impl Saves {
    pub(super) fn of(deferred: &Arc<Deferred>, account: &StoreLane) -> Result<Self, Error> {
        let in_scope = account.scope()?.is_some();
        Ok(Self { deferred: deferred.clone(), lane: account.lane().clone(), in_scope })
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> Option<T> {
        let mut state = self.deferred.lock();
        let is_current = Arc::ptr_eq(&state.lane, &self.lane) && state.current().is_some();
        is_current.then(|| act(&mut state))
    }

    /// Whether saves of this operation may be deferred.
    pub(super) fn may_defer(&self) -> bool {
        !self.in_scope
    }

    pub(super) fn in_scope(&self) -> bool {
        self.in_scope
    }

    /// Whether the account was found to be ours recently enough to use reserved message indices.
    pub(super) fn is_proven(&self) -> bool {
        self.lane.owner.is_proven()
    }

    /// The lane's maintenance counter: it changes when others than the owner have changed rows.
    pub(super) fn maintenance(&self) -> i64 {
        self.lane.cache.maintenance()
    }

    /// The marks of outbound sessions; `None` if this opening of the lane has ended.
    pub(super) fn marks<T>(&self, act: impl FnOnce(&mut Marks) -> T) -> Option<T> {
        self.with(|state| act(&mut state.marks))
    }

    /// The outbound sessions of this opening of the lane; `None` if it has ended or failed.
    pub(super) fn shared_sessions<T>(
        &self,
        act: impl FnOnce(&mut SharedSessions) -> T,
    ) -> Option<T> {
        self.with(|state| act(&mut state.shared))
    }

    /// Records the ratchet of a session that was read. If it differs from the last known one, another
    /// owner has used the session, and this owner may encrypt with the same state of it.
    pub(super) fn record_read(&self, session_id: &str, sending: &SendingRatchet) {
        let ratchets = &mut self.deferred.lock().ratchets;
        let read = match sending {
            SendingRatchet::Used(fingerprint) => Some(*fingerprint),
            SendingRatchet::Unused | SendingRatchet::Unknown => None,
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

    /// Records the ratchet of a session that is deferred or stored.
    pub(super) fn record(&self, session_id: &str, sending: SendingRatchet) {
        let ratchets = &mut self.deferred.lock().ratchets;
        match sending {
            SendingRatchet::Used(fingerprint) => {
                ratchets.insert(session_id.to_owned(), Some(fingerprint));
            }
            SendingRatchet::Unused | SendingRatchet::Unknown => {
                ratchets.remove(session_id);
            }
        }
    }

    /// Whether nothing was encrypted with the session since it was last read or saved.
    pub(super) fn has_only_received(&self, session_id: &str, sending: &SendingRatchet) -> bool {
        match sending {
            SendingRatchet::Unused => true,
            SendingRatchet::Used(now) => {
                self.deferred.lock().ratchets.get(session_id) == Some(&Some(*now))
            }
            SendingRatchet::Unknown => false,
        }
    }

    /// Defers rows; returns false if this opening of the lane has ended.
    ///
    /// # Errors
    ///
    /// [`Error::ReopenRequired`] when the caller was dropped, which interrupts its sync.
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
                let row = Row { stored, version: state.count, in_flight: None };
                state.rows.entry(group).or_default().insert(key, row);
            }
        });
        Ok(deferred.is_some())
    }

    /// A deferred row; `Some(None)` for a deferred deletion.
    pub(super) fn row(&self, (group, key): &RowKey) -> Option<Option<Cells>> {
        self.with(|state| {
            let row = state.rows.get(group)?.get(key)?;
            row.is_visible().then(|| row.stored.clone())
        })?
    }

    /// The deferred rows of a group. To be read before the query is sent: rows committed in between are in
    /// its result.
    pub(super) fn rows(&self, group: &Group) -> BTreeMap<Key, Option<Cells>> {
        let rows = self.with(|state| {
            let rows = state.rows.get(group).into_iter().flatten();
            let visible = rows.filter(|(_, row)| row.is_visible());
            visible.map(|(key, row)| (key.clone(), row.stored.clone())).collect()
        });
        rows.unwrap_or_default()
    }

    /// Completes a save that stores or deletes the rows of these keys: it replaces their deferred rows,
    /// and a save that `ends_sync` stores all other deferred rows too.
    ///
    /// # Errors
    ///
    /// [`Error::ReopenRequired`] when the save ends a sync and the machine's former sync was interrupted.
    pub(super) fn complete(
        &self,
        batch: &mut Batch,
        stored: Vec<RowKey>,
        ends_sync: bool,
    ) -> Result<(), Error> {
        if ends_sync {
            self.check_machine()?;
        }
        let mut saved = Vec::new();
        self.with(|state| {
            for (group, key) in stored {
                if let Some(row) = state.rows.get_mut(&group).and_then(|rows| rows.get_mut(&key)) {
                    row.in_flight = Some(InFlight::Lane);
                    saved.push((group, key, row.version));
                }
            }
            let all = state.rows.iter_mut();
            let rows = all.flat_map(|(group, rows)| rows.iter_mut().map(move |row| (group, row)));
            for (group, (key, row)) in
                rows.filter(|(_, (_, row))| ends_sync && row.in_flight.is_none())
            {
                stage(batch, group, key, row.stored.as_ref());
                row.in_flight = Some(InFlight::Lane);
                saved.push((group.clone(), key.clone(), row.version));
            }
        });
        if saved.is_empty() {
            return Ok(());
        }
        let saved: Arc<[_]> = saved.into();
        if self.in_scope {
            let (saves, saved) = (self.clone(), saved.clone());
            batch.on_overlay(move || saves.hide(&saved));
        }
        let saves = self.clone();
        batch.on_commit(move || saves.forget(&saved));
        Ok(())
    }

    /// Hides the rows that a scope has saved: reads find them in its overlay.
    fn hide(&self, saved: &[(Group, Key, u64)]) {
        self.with(|state| {
            for (group, key, version) in saved {
                let row = state.rows.get_mut(group).and_then(|rows| rows.get_mut(key));
                if let Some(row) = row.filter(|row| row.version == *version) {
                    row.in_flight = Some(InFlight::Scope);
                }
            }
        });
    }

    /// Removes the rows that were committed, unless they were replaced since.
    fn forget(&self, saved: &[(Group, Key, u64)]) {
        self.with(|state| {
            for (group, key, version) in saved {
                if let Some(rows) = state.rows.get_mut(group) {
                    rows.retain(|of, row| of != key || row.version != *version);
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
        // Only saves of sessions and devices, and only deletions of requests, are deferred.
        (Group::OlmSessions(_) | Group::Devices(_), None) | (Group::KeyRequests, Some(_)) => {}
    }
}

/// Applies deferred rows to rows that were read.
pub(super) fn merge(rows: Arc<Rows>, deferred: BTreeMap<Key, Option<Cells>>) -> Arc<Rows> {
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
