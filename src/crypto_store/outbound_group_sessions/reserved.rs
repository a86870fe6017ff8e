//! Message indices reserved ahead of their use, so that an encryption need not wait for a commit.
//!
//! An outbound session may never encrypt twice with one index, and receivers allow gaps. So the session is
//! stored as it will be some messages later: the next owner begins after all indices used meanwhile.
//! The *mark* of a session is the index that is committed for it. A save that differs from what is
//! committed only in the index and the number of messages, and whose index is not above the mark, needs no
//! commit.
//!
//! Nothing below the mark is ever written, whatever the reason for the save, and only the commits of this
//! opening of the lane count. Another owner begins at the mark, so no index is used twice; a
//! superseded owner may use what it had reserved until its last proof of ownership expires.

use std::sync::Arc;

use lru::LruCache;
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

/// The marks of outbound sessions, by session id.
pub(in crate::crypto_store) struct Marks(LruCache<String, Mark>);

#[derive(Clone, Copy, Default)]
struct Mark {
    /// The highest index that was staged: nothing below it is written.
    staged: u32,
    committed: Option<Committed>,
}

#[derive(Clone, Copy)]
struct Committed {
    index: u32,
    fingerprint: Fingerprint,
    /// The number of saves that only the session's use made necessary.
    saves: u32,
}

/// Of everything in a pickled session but its index and the number of messages.
type Fingerprint = [u8; 32];

impl Default for Marks {
    fn default() -> Self {
        Self(LruCache::unbounded())
    }
}

impl Marks {
    fn get(&mut self, session_id: &str) -> Mark {
        self.0.get(session_id).copied().unwrap_or_default()
    }

    fn set(&mut self, session_id: &str, mark: Mark) {
        self.0.put(session_id.to_owned(), mark);
        if self.0.len() > MAX_MARKS {
            self.0.pop_lru();
        }
    }

    /// The commits of an opening do not count in the next one.
    pub(in crate::crypto_store) fn forget_commits(&mut self) {
        self.0.iter_mut().for_each(|(_, mark)| mark.committed = None);
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
    let session_id = session.session_id();
    let before = saves.marks(|marks| marks.get(session_id)).unwrap_or_default();
    let mut current = Snapshot::of(session.pickle().await)?;
    // A scope commits anyway, and may be rolled back.
    let unchanged = before
        .committed
        .filter(|committed| !saves.in_scope() && committed.fingerprint == current.fingerprint);
    let mut index = current.index().max(before.staged);
    let mut count = before.committed.map_or(0, |committed| committed.saves);
    match unchanged {
        Some(committed) if current.index() > committed.index => {
            let ahead = ahead(count).min(current.messages_left);
            index = index.max(current.index().saturating_add(ahead));
            count += 1;
        }
        Some(_) if saves.is_proven() => return Ok(None),
        _ => {}
    }
    current.advance(index);
    saves.marks(|marks| marks.set(session_id, Mark { staged: index, ..before }));
    let fingerprint = current.fingerprint;
    let committed = Some(Committed { index, fingerprint, saves: count });
    let (saves, session_id): (_, Arc<str>) = (saves.clone(), session_id.into());
    batch.on_commit(move || {
        saves.marks(|marks| {
            let staged = marks.get(&session_id).staged.max(index);
            marks.set(&session_id, Mark { staged, committed });
        });
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
