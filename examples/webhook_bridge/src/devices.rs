//! Whose devices the homeserver has been asked about. A message is decrypted after its sender's were:
//! a message under a false name would not show before.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use ruma::{OwnedUserId, UserId};
use tokio::sync::Notify;

/// So many questions about a sender go unanswered before a message of theirs is delivered as it is.
const TRIES: u32 = 3;

/// What is known of a user's devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    Yes,
    /// Not yet, or not since they changed.
    NotYet,
    /// Questions about them are not answered.
    Unavailable,
}

struct User {
    known: Known,
    tries: u32,
    /// When they last changed, by our count.
    changed: u64,
}

#[derive(Default)]
struct State {
    users: HashMap<OwnedUserId, User>,
    /// Messages of these wait.
    wanted: HashSet<OwnedUserId>,
    changes: u64,
}

/// The devices of one run.
#[derive(Default)]
pub struct Devices {
    state: Mutex<State>,
    /// Somebody is wanted.
    pub wanted: Notify,
}

/// The moment in which a question was asked.
#[derive(Clone, Copy)]
pub struct Moment(u64);

impl Devices {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the store remembers: users, and whether they have to be asked about.
    pub fn remember(&self, tracked: impl IntoIterator<Item = (OwnedUserId, bool)>) {
        let mut state = self.lock();
        for (user, dirty) in tracked {
            let known = if dirty { Known::NotYet } else { Known::Yes };
            state.users.insert(user, User { known, tries: 0, changed: 0 });
        }
    }

    /// These users' devices are followed from now on.
    pub fn follow(&self, users: &[OwnedUserId]) {
        let mut state = self.lock();
        for user in users {
            let new = User { known: Known::NotYet, tries: 0, changed: 0 };
            state.users.entry(user.clone()).or_insert(new);
        }
    }

    /// The homeserver says that these users' devices changed.
    pub fn changed<'a>(&self, users: impl IntoIterator<Item = &'a OwnedUserId>) {
        let mut state = self.lock();
        state.changes += 1;
        let changed = state.changes;
        for user in users {
            if let Some(user) = state.users.get_mut(user) {
                *user = User { known: Known::NotYet, tries: 0, changed };
            }
        }
    }

    /// All of them may have changed.
    pub fn all_changed(&self) {
        let users: Vec<_> = self.lock().users.keys().cloned().collect();
        self.changed(&users);
    }

    /// What is known of the sender of a message that waits for it.
    pub fn of_sender(&self, sender: &UserId) -> Known {
        let mut state = self.lock();
        let known = state.users.get(sender).map_or(Known::NotYet, |user| user.known);
        if known == Known::NotYet && state.wanted.insert(sender.to_owned()) {
            drop(state);
            self.wanted.notify_one();
        }
        known
    }

    pub fn wanted(&self) -> Vec<String> {
        self.lock().wanted.iter().map(ToString::to_string).collect()
    }

    /// Whether somebody is still waited for.
    pub fn is_wanted(&self, user: &UserId) -> bool {
        self.lock().wanted.contains(user)
    }

    /// Before a question is sent.
    pub fn now(&self) -> Moment {
        Moment(self.lock().changes)
    }

    /// The homeserver has told of these users' devices; the question was asked at `asked`. Returns
    /// whether a message waited for one.
    pub fn told<'a>(
        &self,
        users: impl IntoIterator<Item = &'a OwnedUserId>,
        asked: Moment,
    ) -> bool {
        let mut state = self.lock();
        let mut waited = false;
        for name in users {
            let user = state.users.get_mut(name);
            if user.as_ref().is_some_and(|user| user.changed > asked.0) {
                continue;
            }
            let new = User { known: Known::Yes, tries: 0, changed: 0 };
            match user {
                Some(user) => user.known = Known::Yes,
                None => {
                    state.users.insert(name.clone(), new);
                }
            }
            waited |= state.wanted.remove(name);
        }
        waited
    }

    /// A question about this user was not answered. Returns whether that is enough.
    pub fn unanswered(&self, user: &UserId) -> bool {
        let mut state = self.lock();
        let new = User { known: Known::NotYet, tries: 0, changed: 0 };
        let entry = state.users.entry(user.to_owned()).or_insert(new);
        entry.tries += 1;
        let enough = entry.tries >= TRIES;
        if enough {
            entry.known = Known::Unavailable;
            state.wanted.remove(user);
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use ruma::owned_user_id;

    use super::*;

    #[test]
    fn an_old_answer_does_not_count_and_no_answer_counts_in_the_end() {
        let devices = Devices::default();
        let alice = owned_user_id!("@alice:x");
        assert_eq!(devices.of_sender(&alice), Known::NotYet);
        assert_eq!(devices.wanted(), ["@alice:x"]);
        devices.follow(std::slice::from_ref(&alice));
        let before = devices.now();
        devices.changed([&alice]);
        assert!(!devices.told([&alice], before));
        assert_eq!(devices.of_sender(&alice), Known::NotYet);
        assert!(devices.told([&alice], devices.now()));
        assert_eq!(devices.of_sender(&alice), Known::Yes);
        assert!(devices.wanted().is_empty());

        devices.changed([&alice]);
        assert_eq!(devices.of_sender(&alice), Known::NotYet);
        assert!(!devices.unanswered(&alice) && !devices.unanswered(&alice));
        assert!(devices.unanswered(&alice));
        assert_eq!(devices.of_sender(&alice), Known::Unavailable);
        assert!(devices.wanted().is_empty());
        devices.told([&alice], devices.now());
        assert_eq!(devices.of_sender(&alice), Known::Yes);
        devices.remember([(owned_user_id!("@bob:x"), false), (owned_user_id!("@eve:x"), true)]);
        assert_eq!(devices.of_sender(&owned_user_id!("@bob:x")), Known::Yes);
        assert_eq!(devices.of_sender(&owned_user_id!("@eve:x")), Known::NotYet);
    }
}
