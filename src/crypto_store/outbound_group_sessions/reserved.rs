//! Message indices reserved ahead of their use, so that an encryption need not wait for a commit.
//!
//! An outbound session may never encrypt twice with one index, and receivers allow gaps. So the session is
//! stored as it will be some messages later: the next owner begins after all indices used meanwhile.
//! The *mark* of a session is the index that is committed for it. A save that differs from what is
//! committed only in the index and the number of messages, and whose index is not above the mark, needs no
//! commit.
//!
//! Nothing below the mark is ever written, whatever the reason for the save, and only what this opening of
//! the account has committed counts. Another owner begins at the mark, so no index is used twice; a
//! superseded owner may use what it had reserved until its last proof of ownership expires.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use matrix_sdk_common::ruma::{OwnedRoomId, RoomId};
use matrix_sdk_crypto::{
    olm::{OutboundGroupSession, PickledOutboundGroupSession},
    store::types::Changes,
    vodozemac::megolm::GroupSession,
};
use sha2::{Digest, Sha256};

use super::TABLE;
use crate::{
    Error,
    account::{StoreLane, ownership::LaneOwnership, write::batch::Batch},
    crypto_store::deferred::sent_sessions,
};

/// How many messages ahead of its use a session is stored: at the first save that only its use makes
/// necessary, at the second, and from then on.
const AHEAD: [u32; 3] = [0, 16, 32];

/// The SDK rotates a session after this many messages, whatever the room's settings say.
const MAX_ROTATION_MESSAGES: u64 = 10_000;

/// The newest outbound session of each room, as this process has stored it.
#[derive(Default)]
pub(in crate::crypto_store) struct Reservations(Mutex<HashMap<OwnedRoomId, Reservation>>);

/// The same in an open account, for one operation.
#[derive(Clone)]
pub(in crate::crypto_store) struct Reserve {
    reservations: Arc<Reservations>,
    opening: Arc<LaneOwnership>,
    /// Within `atomically` there is a commit anyway, and it may be rolled back.
    is_in_scope: bool,
}

struct Reservation {
    session_id: String,
    /// The highest index that was staged: nothing below it is written.
    staged: u32,
    committed: Option<Committed>,
}

#[derive(Clone)]
struct Committed {
    /// The opening that has committed it.
    opening: Weak<LaneOwnership>,
    mark: u32,
    fingerprint: Fingerprint,
    /// How many saves only the session's use has made necessary.
    saves: usize,
}

/// Of everything in a pickled session but its index and the number of messages.
type Fingerprint = [u8; 32];

impl Reservations {
    fn lock(&self) -> MutexGuard<'_, HashMap<OwnedRoomId, Reservation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The highest index that was staged for a session, and what this opening has committed of it.
    fn find(
        &self,
        room_id: &RoomId,
        session_id: &str,
        opening: &Arc<LaneOwnership>,
    ) -> (u32, Option<Committed>) {
        let known = self.lock();
        let reservation = known.get(room_id).filter(|known| known.session_id == session_id);
        let committed = reservation.and_then(|known| known.committed.clone());
        let staged = reservation.map_or(0, |known| known.staged);
        (staged, committed.filter(|committed| committed.is_of(opening)))
    }

    fn stage(&self, room_id: &RoomId, session_id: &str, index: u32) {
        let mut known = self.lock();
        match known.get_mut(room_id).filter(|known| known.session_id == session_id) {
            Some(reservation) => reservation.staged = reservation.staged.max(index),
            // A new session inherits nothing from the one before.
            None => {
                let session_id = session_id.to_owned();
                let reservation = Reservation { session_id, staged: index, committed: None };
                known.insert(room_id.to_owned(), reservation);
            }
        }
    }

    fn commit(&self, room_id: &RoomId, session_id: &str, committed: &Committed) {
        let mut known = self.lock();
        let reservation = known.get_mut(room_id).filter(|known| known.session_id == session_id);
        if let Some(reservation) = reservation {
            reservation.committed = Some(committed.clone());
        }
    }
}

impl Reserve {
    pub(in crate::crypto_store) fn of(
        reservations: &Arc<Reservations>,
        account: &StoreLane,
    ) -> Result<Self, Error> {
        let is_in_scope = account.scope()?.is_some();
        let (reservations, opening) = (reservations.clone(), account.lane().clone());
        Ok(Self { reservations, opening, is_in_scope })
    }

    /// Whether all that the changes would store is the use of indices that are reserved, by an owner that
    /// has proven its ownership recently.
    pub(in crate::crypto_store) async fn covers(&self, changes: &Changes) -> Result<bool, Error> {
        let Some(sessions) = sent_sessions(changes) else { return Ok(false) };
        if self.is_in_scope || self.opening.check_write().is_err() {
            return Ok(false);
        }
        for session in sessions {
            let current = Snapshot::of(session.pickle().await)?;
            let (_, committed) =
                self.reservations.find(session.room_id(), session.session_id(), &self.opening);
            let is_covered = committed.is_some_and(|committed| {
                committed.fingerprint == current.fingerprint && current.index() <= committed.mark
            });
            if !is_covered {
                return Ok(false);
            }
        }
        Ok(self.opening.owner.is_proven())
    }

    /// The session as it is to be stored: no earlier than it was staged before, and some messages ahead when
    /// only its use makes the save necessary.
    pub(super) async fn stage(
        &self,
        batch: &mut Batch,
        session: &OutboundGroupSession,
    ) -> Result<PickledOutboundGroupSession, Error> {
        let (room_id, session_id) = (session.room_id(), session.session_id());
        // Before the session is pickled, so that it is not older than what it is compared with.
        let (staged, before) = self.reservations.find(room_id, session_id, &self.opening);
        let mut current = Snapshot::of(session.pickle().await)?;
        let is_only_used = before.as_ref().is_some_and(|before| {
            before.fingerprint == current.fingerprint && current.index() > before.mark
        });
        let mut saves = before.map_or(0, |before| before.saves);
        let mut mark = current.index().max(staged);
        if is_only_used && !self.is_in_scope {
            let ahead = AHEAD.get(saves).or(AHEAD.last()).copied().unwrap_or_default();
            mark = mark.max(current.index().saturating_add(ahead.min(current.messages_left)));
            saves += 1;
        }
        current.advance(mark);
        self.reservations.stage(room_id, session_id, mark);
        let (opening, fingerprint) = (Arc::downgrade(&self.opening), current.fingerprint);
        let committed = Committed { opening, mark, fingerprint, saves };
        let reservations = self.reservations.clone();
        let (room_id, session_id) = (room_id.to_owned(), session_id.to_owned());
        batch.on_commit(move || reservations.commit(&room_id, &session_id, &committed));
        Ok(current.into_pickle())
    }
}

impl Committed {
    fn is_of(&self, opening: &Arc<LaneOwnership>) -> bool {
        std::ptr::eq(self.opening.as_ptr(), Arc::as_ptr(opening))
    }
}

/// An outbound session at one moment.
struct Snapshot {
    /// Moves on when the session is stored ahead.
    group_session: GroupSession,
    pickle: PickledOutboundGroupSession,
    /// How many messages more the SDK may send with the session.
    messages_left: u32,
    fingerprint: Fingerprint,
}

impl Snapshot {
    fn of(mut pickle: PickledOutboundGroupSession) -> Result<Self, Error> {
        let fingerprint = fingerprint(&pickle)?;
        let group_session = GroupSession::from_pickle(pickle.pickle);
        pickle.pickle = group_session.pickle();
        let max_messages = pickle.settings.rotation_period_msgs.clamp(1, MAX_ROTATION_MESSAGES);
        // With the last one it would be expired, and the SDK panics that encrypts with such a session.
        let messages_left = (max_messages - 1).saturating_sub(pickle.message_count);
        let messages_left = u32::try_from(messages_left).unwrap_or(u32::MAX);
        Ok(Self { group_session, pickle, messages_left, fingerprint })
    }

    fn index(&self) -> u32 {
        self.group_session.message_index()
    }

    fn advance(&mut self, index: u32) {
        while self.index() < index {
            self.group_session.encrypt("");
            self.pickle.message_count += 1;
        }
    }

    fn into_pickle(mut self) -> PickledOutboundGroupSession {
        self.pickle.pickle = self.group_session.pickle();
        self.pickle
    }
}

fn fingerprint(pickle: &PickledOutboundGroupSession) -> Result<Fingerprint, Error> {
    // Destructured without `..`: a field that upstream adds breaks the build, not the store.
    let PickledOutboundGroupSession {
        pickle: _,
        settings,
        room_id,
        creation_time,
        message_count: _,
        shared,
        invalidated,
        shared_with_set,
        requests,
    } = pickle;
    let rest = (settings, room_id, creation_time, shared, invalidated, shared_with_set, requests);
    let text = serde_json::to_vec(&rest).map_err(|_| Error::Encode { table: TABLE })?;
    Ok(Sha256::digest(&text).into())
}
