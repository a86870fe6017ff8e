//! Message indices reserved ahead of their use, so that an encryption need not wait for a commit.
//!
//! An outbound session may never encrypt twice with one index, and receivers allow gaps. So the session is
//! stored as it will be some messages later: the next owner begins after all indices used meanwhile.
//! The *mark* of a session is the index that is committed for it. A save that differs from what is
//! committed only in the index and the number of messages, and whose index is not above the mark, needs no
//! commit.
//!
//! Nothing below the mark is ever written, whatever the reason for the save. A commit counts while the
//! room's row holds what it stored: until another session is stored for the room, an operator changes rows
//! of the lane, or the lane is reopened. Another owner begins at the mark, so no index is used twice; a
//! superseded owner may use what it had reserved until its last proof of ownership expires.

use lru::LruCache;
use matrix_sdk_common::ruma::{OwnedRoomId, RoomId};
use matrix_sdk_crypto::{
    olm::{OutboundGroupSession, PickledOutboundGroupSession},
    vodozemac::megolm::GroupSession,
};
use sha2::{Digest, Sha256};

use super::TABLE;
use crate::{Error, account::write::batch::Batch, crypto_store::deferred::Saves};

/// How many messages ahead of its use a session is stored, by the number of saves that only its use made
/// necessary.
const fn ahead(saves: u32) -> u32 {
    match saves {
        0 => 0,
        1 => 16,
        _ => 32,
    }
}

/// The SDK rotates a session after this many messages, whatever the room's settings say.
const MAX_ROTATION_MESSAGES: u64 = 10_000;

/// Sessions whose marks are kept. A session without a mark is stored at each message.
const MAX_MARKS: usize = 10_000;

/// The marks of outbound sessions, and what each room's row holds.
pub(in crate::crypto_store) struct Marks {
    /// By session id, the highest index that was staged: nothing below it is written.
    staged: LruCache<String, u32>,
    rows: LruCache<OwnedRoomId, Row>,
}

/// The last session that was staged for a room: it replaces the one before, whichever that was.
struct Row {
    session: Stored,
    /// When it was committed, the lane's maintenance counter.
    committed: Option<i64>,
}

#[derive(Clone, PartialEq, Eq)]
struct Stored {
    id: String,
    index: u32,
    fingerprint: Fingerprint,
    /// The number of saves that only the session's use made necessary.
    saves: u32,
}

/// Of everything in a pickled session but its index and the number of messages.
type Fingerprint = [u8; 32];

impl Default for Marks {
    fn default() -> Self {
        Self { staged: LruCache::unbounded(), rows: LruCache::unbounded() }
    }
}

impl Marks {
    /// The index below which the session is not written. Either cache may have dropped it.
    fn lowest(&mut self, room_id: &RoomId, id: &str) -> u32 {
        let staged = self.staged.get(id).copied().unwrap_or_default();
        let row = self.rows.peek(room_id).filter(|row| row.session.id == id);
        row.map_or(staged, |row| row.session.index.max(staged))
    }

    /// What was staged last for the room, and whether its row certainly holds that, if it is this session.
    fn row(&mut self, room_id: &RoomId, id: &str, maintenance: i64) -> Option<(Stored, bool)> {
        let row = self.rows.get(room_id).filter(|row| row.session.id == id)?;
        Some((row.session.clone(), row.committed == Some(maintenance)))
    }

    fn stage(&mut self, room_id: &RoomId, session: Stored) {
        self.staged.put(session.id.clone(), session.index);
        self.rows.put(room_id.to_owned(), Row { session, committed: None });
        if self.staged.len() > MAX_MARKS {
            self.staged.pop_lru();
        }
        if self.rows.len() > MAX_MARKS {
            self.rows.pop_lru();
        }
    }

    /// Does nothing if something else has been staged for the room since.
    fn commit(&mut self, room_id: &RoomId, session: &Stored, maintenance: i64) {
        if let Some(row) = self.rows.get_mut(room_id).filter(|row| row.session == *session) {
            row.committed = Some(maintenance);
        }
    }

    /// The commits of an opening do not count in the next one.
    pub(in crate::crypto_store) fn forget_commits(&mut self) {
        self.rows.iter_mut().for_each(|(_, row)| row.committed = None);
    }
}

/// The session as it is to be stored: no earlier than it was staged before, and some messages ahead when
/// only its use makes the save necessary. `None` if the stored one covers its use. Called in the writer
/// lane, where one save is staged after the other.
pub(super) async fn stage(
    saves: &Saves,
    batch: &mut Batch,
    session: &OutboundGroupSession,
) -> Result<Option<PickledOutboundGroupSession>, Error> {
    let (room_id, id) = (session.room_id(), session.session_id());
    let mut current = Snapshot::of(session.pickle().await)?;
    let maintenance = saves.maintenance();
    let (lowest, row) = saves
        .marks(|marks| (marks.lowest(room_id, id), marks.row(room_id, id, maintenance)))
        .unwrap_or_default();
    let mut index = current.index().max(lowest);
    let mut count = row.as_ref().map_or(0, |(stored, _)| stored.saves);
    // A scope commits anyway, and may be rolled back.
    let committed = row.filter(|(_, is_committed)| *is_committed && !saves.in_scope());
    match committed {
        Some((stored, _)) if stored.fingerprint != current.fingerprint => {}
        Some((stored, _)) if current.index() > stored.index => {
            let ahead = ahead(count).min(current.messages_left);
            index = index.max(current.index().saturating_add(ahead));
            count += 1;
        }
        Some(_) if saves.is_proven() => return Ok(None),
        _ => {}
    }
    current.advance(index);
    let fingerprint = current.fingerprint;
    let stored = Stored { id: id.to_owned(), index, fingerprint, saves: count };
    saves.marks(|marks| marks.stage(room_id, stored.clone()));
    let (saves, room_id) = (saves.clone(), room_id.to_owned());
    // The counter of the staging: others may have changed the row since the commit.
    batch.on_commit(move || {
        saves.marks(|marks| marks.commit(&room_id, &stored, maintenance));
    });
    Ok(Some(current.into_pickle()))
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
            // The SDK reads ratchet and count one after the other: the count may be ahead.
            if self.messages_left > 0 {
                self.pickle.message_count += 1;
                self.messages_left -= 1;
            }
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

#[cfg(test)]
mod tests {
    use matrix_sdk_common::ruma::{RoomId, room_id};

    use super::{MAX_MARKS, Marks, Stored};

    fn stored(id: &str, index: u32) -> Stored {
        Stored { id: id.to_owned(), index, fingerprint: [0; 32], saves: 0 }
    }

    /// Sessions and rooms are dropped in an order of their own.
    #[test]
    fn a_mark_is_kept_while_one_of_the_caches_has_it() {
        let room = room_id!("!room:example.org");
        let mut marks = Marks::default();
        marks.stage(room, stored("session", 37));
        for number in 0..MAX_MARKS {
            marks.stage(room_id!("!busy:example.org"), stored(&format!("session {number}"), 1));
        }
        assert!(marks.staged.peek("session").is_none());
        assert_eq!(marks.lowest(room, "session"), 37);
        assert_eq!(marks.lowest(room, "another"), 0);

        let mut marks = Marks::default();
        marks.stage(room, stored("session", 37));
        let others = (0..MAX_MARKS).map(|number| format!("!room{number}:example.org"));
        for other in others.filter_map(|id| RoomId::parse(id).ok()) {
            marks.stage(&other, stored("busy", 1));
        }
        assert!(marks.rows.peek(room).is_none());
        assert_eq!(marks.lowest(room, "session"), 37);
    }
}
