//! One object for each outbound session, shared by all that encrypt with it.
//!
//! A session counts its messages in memory, and its clones share the count. The SDK reads a room's session
//! once, but tasks that encrypt first after an opening read it at the same time, and so do two machines. With
//! objects of their own they would encrypt with the same indices.
//!
//! Kept for one opening of the lane only, and forgotten by each `reopen()`: what the sessions hold may be
//! ahead of what is stored.

use lru::LruCache;
use matrix_sdk_common::ruma::OwnedRoomId;
use matrix_sdk_crypto::olm::OutboundGroupSession;

/// Rooms whose sessions are kept.
const MAX_ROOMS: usize = 10_000;

/// Sessions kept for a room: the one before the newest may still be read, until the newest is committed or by a
/// read that began before.
const MAX_SESSIONS: usize = 2;

/// The sessions that were read or saved in this opening, by room, the newest first.
pub(in crate::crypto_store) struct SharedSessions(LruCache<OwnedRoomId, Vec<OutboundGroupSession>>);

impl Default for SharedSessions {
    fn default() -> Self {
        Self(LruCache::unbounded())
    }
}

impl SharedSessions {
    /// The object to use for a session that was read.
    pub(super) fn share(&mut self, read: OutboundGroupSession) -> OutboundGroupSession {
        let mut kept = self.0.get(read.room_id()).into_iter().flatten();
        if let Some(shared) = kept.find(|kept| is_same(kept, &read)) {
            return shared.clone();
        }
        self.put(&read);
        read
    }

    /// Keeps a session that is saved: it replaces another object of the same one.
    pub(super) fn put(&mut self, session: &OutboundGroupSession) {
        let kept = self.0.get_or_insert_mut(session.room_id().to_owned(), Vec::new);
        kept.retain(|kept| !is_same(kept, session));
        kept.insert(0, session.clone());
        kept.truncate(MAX_SESSIONS);
        if self.0.len() > MAX_ROOMS {
            self.0.pop_lru();
        }
    }

    pub(in crate::crypto_store) fn forget(&mut self) {
        self.0.clear();
    }
}

fn is_same(one: &OutboundGroupSession, other: &OutboundGroupSession) -> bool {
    one.session_id() == other.session_id()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use matrix_sdk_common::ruma::{device_id, room_id, user_id};
    use matrix_sdk_crypto::{Account, EncryptionSettings, olm::OutboundGroupSession};

    use super::SharedSessions;

    /// Until the commit of a new session, reads find the one before it.
    #[tokio::test]
    async fn reading_the_session_before_the_newest_displaces_neither() {
        let own = Account::with_device_id(user_id!("@bot:example.org"), device_id!("DEVICE"));
        let own = || (own.device_id().to_owned(), own.static_data().identity_keys.clone());
        let session = || {
            let ((device_id, keys), room_id) = (own(), room_id!("!room:example.org"));
            let settings = EncryptionSettings::default();
            OutboundGroupSession::new(device_id, keys, room_id, settings).unwrap()
        };
        let (older, newer) = (session(), session());
        let mut shared = SharedSessions::default();
        shared.put(&older);
        shared.put(&newer);
        for kept in [&older, &newer] {
            let ((device_id, keys), pickle) = (own(), kept.pickle().await);
            let read = OutboundGroupSession::from_pickle(device_id, keys, pickle).unwrap();
            kept.invalidate_session();
            assert!(shared.share(read).invalidated(), "another object");
        }
    }
}
