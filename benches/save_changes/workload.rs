//! The data that is saved: new each time, as in real use.

use std::sync::atomic::{AtomicUsize, Ordering};

use matrix_sdk_crypto::{
    DeviceData,
    olm::{Account, InboundGroupSession, OlmMessageHash, SenderDataType, Session},
    store::types::{Changes, DeviceChanges},
};
use ruma::{DeviceId, OwnedRoomId, OwnedUserId};
use test_support::fixture::inbound_session;

/// Number of friends that write in a busy sync.
const FRIENDS: usize = 20;

pub struct Workload {
    friends: Vec<Account>,
    /// One session with each friend, changed by every message.
    olm_sessions: Vec<Session>,
    count: AtomicUsize,
}

impl Workload {
    pub fn new() -> Self {
        let bot = account("@bot:example.org");
        let mut friends: Vec<Account> =
            (0..FRIENDS).map(|number| account(&format!("@friend{number}:example.org"))).collect();
        let olm_sessions = friends.iter_mut().map(|friend| olm_session(&bot, friend)).collect();
        Self { friends, olm_sessions, count: AtomicUsize::new(0) }
    }

    fn next(&self) -> usize {
        self.count.fetch_add(1, Ordering::Relaxed)
    }

    fn token(&self) -> Option<String> {
        Some(format!("s72594_4483_1934_{}", self.next()))
    }

    /// One new room key and a token.
    pub fn one_session(&self) -> Changes {
        Changes {
            inbound_group_sessions: vec![room_key(&self.friends[0], self.next())],
            next_batch_token: self.token(),
            ..Default::default()
        }
    }

    /// A new room key from each friend, with the other data of its message.
    pub fn busy_sync(&self) -> Changes {
        let hash = |friend: &Account| OlmMessageHash {
            sender_key: friend.identity_keys().curve25519.to_base64(),
            hash: format!("the hash of a message, number {}", self.next()),
        };
        Changes {
            sessions: self.olm_sessions.clone(),
            message_hashes: self.friends.iter().map(hash).collect(),
            inbound_group_sessions: self
                .friends
                .iter()
                .map(|friend| room_key(friend, self.next()))
                .collect(),
            devices: DeviceChanges {
                changed: self.friends.iter().map(DeviceData::from_account).collect(),
                ..Default::default()
            },
            next_batch_token: self.token(),
            ..Default::default()
        }
    }
}

/// `count` room keys of one sender.
pub fn sessions(count: usize) -> Vec<InboundGroupSession> {
    let sender = account("@sender:example.org");
    (0..count).map(|number| room_key(&sender, number)).collect()
}

/// A room key in one of a hundred rooms.
fn room_key(sender: &Account, number: usize) -> InboundGroupSession {
    let room_id = OwnedRoomId::try_from(format!("!room{}:example.org", number % 100)).unwrap();
    inbound_session(sender, &room_id, SenderDataType::DeviceInfo)
}

fn account(user_id: &str) -> Account {
    let user_id = OwnedUserId::try_from(user_id).unwrap();
    Account::with_device_id(&user_id, <&DeviceId>::from("DEVICE"))
}

fn olm_session(bot: &Account, friend: &mut Account) -> Session {
    friend.generate_one_time_keys(1);
    let one_time_key = *friend.one_time_keys().values().next().unwrap();
    let their_key = friend.identity_keys().curve25519;
    bot.create_outbound_session_helper(
        Default::default(),
        their_key,
        one_time_key,
        false,
        bot.device_keys(),
    )
    .unwrap()
}
