//! Tracks whose devices have been queried. A message is decrypted only after its sender's devices are
//! known: before, a forged sender cannot be detected.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ruma::{OwnedUserId, UserId};
use tokio::{sync::Notify, time::Instant};

/// After this many failed key queries a message is delivered without its sender's devices.
const MAX_FAILED_QUERIES: u32 = 3;
/// The longest that a message waits. The failed queries usually take less.
const MAX_WAIT: Duration = Duration::from_secs(2 * 60);

/// Whether a user's devices are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceStatus {
    Known,
    /// Not queried yet, or changed since.
    Pending,
    /// The key queries fail.
    Unavailable,
}

#[derive(Default)]
struct User {
    /// The change counter when the devices last changed.
    changed_at: u64,
    /// The change counter when the newest successful query was sent.
    queried_at: Option<u64>,
    /// Failed queries since then.
    failed_queries: u32,
}

/// A message that waits until the devices of its possible senders are known.
struct Wait {
    senders: Vec<OwnedUserId>,
    /// The change counter when the wait began: later changes do not prolong it.
    changes: u64,
    began: Instant,
}

#[derive(Default)]
struct State {
    users: HashMap<OwnedUserId, User>,
    /// By event id.
    waits: HashMap<String, Wait>,
    /// The change counter: incremented by each change of device lists.
    changes: u64,
}

impl State {
    fn status(&self, sender: &UserId, wait: Option<&Wait>) -> DeviceStatus {
        let user = self.users.get(sender);
        let enough =
            |user: &User| wait.map_or(user.changed_at, |wait| wait.changes.min(user.changed_at));
        if user.is_some_and(|user| {
            user.queried_at.is_some_and(|queried_at| queried_at >= enough(user))
        }) {
            return DeviceStatus::Known;
        }
        let given_up = user.is_some_and(|user| user.failed_queries >= MAX_FAILED_QUERIES);
        let too_long = wait.is_some_and(|wait| wait.began.elapsed() >= MAX_WAIT);
        if given_up || too_long { DeviceStatus::Unavailable } else { DeviceStatus::Pending }
    }

    /// The worst status of these users.
    fn worst_status(&self, senders: &[&UserId], wait: Option<&Wait>) -> DeviceStatus {
        let all: Vec<_> = senders.iter().map(|sender| self.status(sender, wait)).collect();
        let worst = [DeviceStatus::Pending, DeviceStatus::Unavailable];
        worst.into_iter().find(|status| all.contains(status)).unwrap_or(DeviceStatus::Known)
    }

    /// The senders of messages that wait.
    fn users_to_query(&self) -> impl Iterator<Item = &OwnedUserId> {
        self.waits.values().flat_map(|wait| {
            let pending =
                |user: &&OwnedUserId| self.status(user, Some(wait)) == DeviceStatus::Pending;
            wait.senders.iter().filter(pending)
        })
    }
}

/// The devices of one run.
#[derive(Default)]
pub struct Devices {
    state: Mutex<State>,
    /// A user needs to be queried.
    pub query_needed: Notify,
}

/// The value of the change counter when a query was sent.
#[derive(Clone, Copy)]
pub struct ChangeCount(u64);

impl Devices {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Load the store's tracked users, and whether their devices are outdated.
    pub fn load(&self, tracked: impl IntoIterator<Item = (OwnedUserId, bool)>) {
        let mut state = self.lock();
        for (user, dirty) in tracked {
            let queried_at = if dirty { None } else { Some(0) };
            state.users.insert(user, User { queried_at, ..User::default() });
        }
    }

    /// Start tracking the devices of these users.
    pub fn track(&self, users: &[OwnedUserId]) {
        let mut state = self.lock();
        for user in users {
            state.users.entry(user.clone()).or_default();
        }
    }

    /// The devices of these users changed, according to a sync.
    pub fn mark_changed<'a>(&self, users: impl IntoIterator<Item = &'a OwnedUserId>) {
        let mut state = self.lock();
        state.changes += 1;
        let changes = state.changes;
        for user in users {
            if let Some(user) = state.users.get_mut(user) {
                user.changed_at = changes;
            }
        }
    }

    /// The devices of all users may have changed.
    pub fn mark_all_changed(&self) {
        let users: Vec<_> = self.lock().users.keys().cloned().collect();
        self.mark_changed(&users);
    }

    /// The status of a message's possible senders: the claimed one, and the bots of bridges that may speak
    /// for it. The first call for a message starts its wait.
    pub fn sender_status(&self, senders: &[&UserId], event_id: &str) -> DeviceStatus {
        let mut state = self.lock();
        let status = state.worst_status(senders, state.waits.get(event_id));
        if status != DeviceStatus::Pending {
            state.waits.remove(event_id);
        } else if !state.waits.contains_key(event_id) {
            // Redacted messages leave their waits behind.
            state.waits.retain(|_, wait| wait.began.elapsed() < MAX_WAIT * 2);
            let senders = senders.iter().map(|sender| (*sender).to_owned()).collect();
            let wait = Wait { senders, changes: state.changes, began: Instant::now() };
            state.waits.insert(event_id.to_owned(), wait);
            drop(state);
            self.query_needed.notify_one();
        }
        status
    }

    pub fn users_to_query(&self) -> Vec<String> {
        let state = self.lock();
        let users: HashSet<_> = state.users_to_query().collect();
        users.into_iter().map(ToString::to_string).collect()
    }

    /// Whether a message still waits for this user's devices.
    pub fn needs_query(&self, user: &UserId) -> bool {
        self.lock().users_to_query().any(|other| other == user)
    }

    /// To be called before a query is sent.
    pub fn change_count(&self) -> ChangeCount {
        ChangeCount(self.lock().changes)
    }

    /// A query that was sent at `sent_at` returned the devices of these users. Returns whether it
    /// ended the wait of a message.
    pub fn queried<'a>(
        &self,
        users: impl IntoIterator<Item = &'a OwnedUserId>,
        sent_at: ChangeCount,
    ) -> bool {
        let mut state = self.lock();
        let before = state.users_to_query().count();
        for name in users {
            let user = state.users.entry(name.clone()).or_default();
            user.queried_at = user.queried_at.max(Some(sent_at.0));
            user.failed_queries = 0;
        }
        state.users_to_query().count() < before
    }

    /// A query of this user failed. Returns whether to give up.
    pub fn query_failed(&self, user: &UserId) -> bool {
        let mut state = self.lock();
        let entry = state.users.entry(user.to_owned()).or_default();
        entry.failed_queries += 1;
        entry.failed_queries >= MAX_FAILED_QUERIES
    }
}

#[cfg(test)]
mod tests {
    use ruma::owned_user_id;

    use super::*;

    #[test]
    fn an_outdated_query_does_not_count_and_repeated_failures_end_the_wait() {
        let devices = Devices::default();
        let alice = owned_user_id!("@alice:x");
        assert_eq!(devices.sender_status(&[&alice], "$1"), DeviceStatus::Pending);
        assert_eq!(devices.users_to_query(), ["@alice:x"]);
        devices.track(std::slice::from_ref(&alice));
        let before = devices.change_count();
        devices.mark_changed([&alice]);
        assert_eq!(devices.sender_status(&[&alice], "$2"), DeviceStatus::Pending);
        // The wait of $1 began before the change, so this response is recent enough for it.
        assert!(devices.queried([&alice], before));
        assert_eq!(devices.sender_status(&[&alice], "$1"), DeviceStatus::Known);
        assert_eq!(devices.sender_status(&[&alice], "$2"), DeviceStatus::Pending);
        assert!(devices.needs_query(&alice));
        assert!(devices.queried([&alice], devices.change_count()));
        assert_eq!(devices.sender_status(&[&alice], "$2"), DeviceStatus::Known);
        assert!(devices.users_to_query().is_empty());

        devices.mark_changed([&alice]);
        assert_eq!(devices.sender_status(&[&alice], "$3"), DeviceStatus::Pending);
        assert!(!devices.query_failed(&alice) && !devices.query_failed(&alice));
        // Later changes do not prolong the wait.
        devices.mark_changed([&alice]);
        assert!(devices.query_failed(&alice));
        assert_eq!(devices.sender_status(&[&alice], "$3"), DeviceStatus::Unavailable);
        assert!(devices.users_to_query().is_empty());
        devices.mark_changed([&alice]);
        assert_eq!(devices.sender_status(&[&alice], "$4"), DeviceStatus::Unavailable);
        devices.queried([&alice], devices.change_count());
        assert_eq!(devices.sender_status(&[&alice], "$5"), DeviceStatus::Known);
        devices.load([(owned_user_id!("@bob:x"), false), (owned_user_id!("@eve:x"), true)]);
        assert_eq!(devices.sender_status(&[&owned_user_id!("@bob:x")], "$6"), DeviceStatus::Known);
        assert_eq!(
            devices.sender_status(&[&owned_user_id!("@eve:x")], "$7"),
            DeviceStatus::Pending
        );
    }

    #[test]
    fn the_devices_of_all_possible_senders_are_waited_for() {
        let devices = Devices::default();
        let (ghost, bot) = (owned_user_id!("@meta_1:x"), owned_user_id!("@metabot:x"));
        let status = |event_id| devices.sender_status(&[&ghost, &bot], event_id);
        devices.load([(ghost.clone(), false)]);
        assert_eq!(status("$1"), DeviceStatus::Pending);
        assert_eq!(devices.users_to_query(), ["@metabot:x"]);
        // Also of the one that was known when the wait began.
        devices.mark_changed([&ghost]);
        assert!(devices.queried([&bot], devices.change_count()));
        assert_eq!(status("$1"), DeviceStatus::Known);
        assert_eq!(status("$2"), DeviceStatus::Pending);
        assert_eq!(devices.users_to_query(), ["@meta_1:x"]);
        for _ in 0..MAX_FAILED_QUERIES {
            devices.query_failed(&ghost);
        }
        assert_eq!(status("$2"), DeviceStatus::Unavailable);
    }

    #[test]
    fn waits_are_bounded() {
        let devices = Devices::default();
        let alice = owned_user_id!("@alice:x");
        assert_eq!(devices.sender_status(&[&alice], "$1"), DeviceStatus::Pending);
        let Some(long_ago) = Instant::now().checked_sub(MAX_WAIT) else { return };
        devices.lock().waits.get_mut("$1").unwrap().began = long_ago;
        assert_eq!(devices.sender_status(&[&alice], "$1"), DeviceStatus::Unavailable);
        assert_eq!(devices.sender_status(&[&alice], "$2"), DeviceStatus::Pending);
    }
}
