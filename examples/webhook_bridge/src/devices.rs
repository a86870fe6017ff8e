//! Whose devices the homeserver has been asked about. A message is decrypted after its sender's were:
//! a message under a false name would not show before.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ruma::{OwnedUserId, UserId};
use tokio::{sync::Notify, time::Instant};

/// So many questions about a sender go unanswered before a message of theirs is delivered as it is.
const TRIES: u32 = 3;
/// No message waits longer. Three questions that nobody answers take less, unless many are asked.
const LONGEST_WAIT: Duration = Duration::from_secs(2 * 60);

/// What is known of a user's devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    Yes,
    /// Not yet, or not since they changed.
    NotYet,
    /// Questions about them are not answered.
    Unavailable,
}

#[derive(Default)]
struct User {
    /// When they last changed, by our count.
    changed: u64,
    /// When the newest question was asked that was answered.
    told: Option<u64>,
    /// Questions without an answer since then.
    unanswered: u32,
}

/// A message that waits until its sender's devices are known.
struct Wait {
    sender: OwnedUserId,
    /// The count of changes when it began: those that come later do not make it longer.
    changes: u64,
    began: Instant,
}

#[derive(Default)]
struct State {
    users: HashMap<OwnedUserId, User>,
    /// By the messages' event ids.
    waits: HashMap<String, Wait>,
    changes: u64,
}

impl State {
    fn known(&self, sender: &UserId, wait: Option<&Wait>) -> Known {
        let user = self.users.get(sender);
        let enough = |user: &User| wait.map_or(user.changed, |wait| wait.changes.min(user.changed));
        if user.is_some_and(|user| user.told.is_some_and(|told| told >= enough(user))) {
            return Known::Yes;
        }
        let given_up = user.is_some_and(|user| user.unanswered >= TRIES);
        let too_long = wait.is_some_and(|wait| wait.began.elapsed() >= LONGEST_WAIT);
        if given_up || too_long { Known::Unavailable } else { Known::NotYet }
    }

    /// The senders of messages that wait.
    fn wanted(&self) -> impl Iterator<Item = &OwnedUserId> {
        let waits = self.waits.values();
        waits
            .filter(|wait| self.known(&wait.sender, Some(wait)) == Known::NotYet)
            .map(|wait| &wait.sender)
    }
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
            let told = if dirty { None } else { Some(0) };
            state.users.insert(user, User { told, ..User::default() });
        }
    }

    /// These users' devices are followed from now on.
    pub fn follow(&self, users: &[OwnedUserId]) {
        let mut state = self.lock();
        for user in users {
            state.users.entry(user.clone()).or_default();
        }
    }

    /// The homeserver says that these users' devices changed.
    pub fn changed<'a>(&self, users: impl IntoIterator<Item = &'a OwnedUserId>) {
        let mut state = self.lock();
        state.changes += 1;
        let changes = state.changes;
        for user in users {
            if let Some(user) = state.users.get_mut(user) {
                user.changed = changes;
            }
        }
    }

    /// All of them may have changed.
    pub fn all_changed(&self) {
        let users: Vec<_> = self.lock().users.keys().cloned().collect();
        self.changed(&users);
    }

    /// What is known of the sender of a message, which waits for it from the first time on.
    pub fn of_sender(&self, sender: &UserId, event_id: &str) -> Known {
        let mut state = self.lock();
        let known = state.known(sender, state.waits.get(event_id));
        if known != Known::NotYet {
            state.waits.remove(event_id);
        } else if !state.waits.contains_key(event_id) {
            // Messages that were taken back meanwhile are not asked about any more.
            state.waits.retain(|_, wait| wait.began.elapsed() < LONGEST_WAIT * 2);
            let wait =
                Wait { sender: sender.to_owned(), changes: state.changes, began: Instant::now() };
            state.waits.insert(event_id.to_owned(), wait);
            drop(state);
            self.wanted.notify_one();
        }
        known
    }

    pub fn wanted(&self) -> Vec<String> {
        let state = self.lock();
        let wanted: HashSet<_> = state.wanted().collect();
        wanted.into_iter().map(ToString::to_string).collect()
    }

    /// Whether somebody is still waited for.
    pub fn is_wanted(&self, user: &UserId) -> bool {
        self.lock().wanted().any(|wanted| wanted == user)
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
        let before = state.wanted().count();
        for name in users {
            let user = state.users.entry(name.clone()).or_default();
            user.told = user.told.max(Some(asked.0));
            user.unanswered = 0;
        }
        state.wanted().count() < before
    }

    /// A question about this user was not answered. Returns whether that is enough.
    pub fn unanswered(&self, user: &UserId) -> bool {
        let mut state = self.lock();
        let entry = state.users.entry(user.to_owned()).or_default();
        entry.unanswered += 1;
        entry.unanswered >= TRIES
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
        assert_eq!(devices.of_sender(&alice, "$1"), Known::NotYet);
        assert_eq!(devices.wanted(), ["@alice:x"]);
        devices.follow(std::slice::from_ref(&alice));
        let before = devices.now();
        devices.changed([&alice]);
        assert_eq!(devices.of_sender(&alice, "$2"), Known::NotYet);
        // For the first it is no old one.
        assert!(devices.told([&alice], before));
        assert_eq!(devices.of_sender(&alice, "$1"), Known::Yes);
        assert_eq!(devices.of_sender(&alice, "$2"), Known::NotYet);
        assert!(devices.is_wanted(&alice));
        assert!(devices.told([&alice], devices.now()));
        assert_eq!(devices.of_sender(&alice, "$2"), Known::Yes);
        assert!(devices.wanted().is_empty());

        devices.changed([&alice]);
        assert_eq!(devices.of_sender(&alice, "$3"), Known::NotYet);
        assert!(!devices.unanswered(&alice) && !devices.unanswered(&alice));
        // What changes meanwhile does not make it longer.
        devices.changed([&alice]);
        assert!(devices.unanswered(&alice));
        assert_eq!(devices.of_sender(&alice, "$3"), Known::Unavailable);
        assert!(devices.wanted().is_empty());
        devices.changed([&alice]);
        assert_eq!(devices.of_sender(&alice, "$4"), Known::Unavailable);
        devices.told([&alice], devices.now());
        assert_eq!(devices.of_sender(&alice, "$5"), Known::Yes);
        devices.remember([(owned_user_id!("@bob:x"), false), (owned_user_id!("@eve:x"), true)]);
        assert_eq!(devices.of_sender(&owned_user_id!("@bob:x"), "$6"), Known::Yes);
        assert_eq!(devices.of_sender(&owned_user_id!("@eve:x"), "$7"), Known::NotYet);
    }

    #[test]
    fn no_wait_is_for_ever() {
        let devices = Devices::default();
        let alice = owned_user_id!("@alice:x");
        assert_eq!(devices.of_sender(&alice, "$1"), Known::NotYet);
        let Some(long_ago) = Instant::now().checked_sub(LONGEST_WAIT) else { return };
        devices.lock().waits.get_mut("$1").unwrap().began = long_ago;
        assert_eq!(devices.of_sender(&alice, "$1"), Known::Unavailable);
        assert_eq!(devices.of_sender(&alice, "$2"), Known::NotYet);
    }
}
