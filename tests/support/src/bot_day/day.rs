//! The steps of the day.

use matrix_sdk_crypto::{EncryptionSettings, OlmMachine};
use ruma::{OwnedUserId, UserId, api::client::to_device::send_event_to_device, user_id};
use serde_json::Value;

use super::{
    Meter, Step, Subject,
    counted::Counted,
    friends::{Friend, Message, exported_keys, members, room},
};
use crate::machine::{HomeserverResponse, Relay, SETTINGS, encrypt, open_machine};

const FRIENDS: usize = 20;
const MESSAGES_EACH: usize = 10;
const EMPTY_SYNCS: usize = 20;
const ENCRYPTED: usize = 50;
const IMPORTED: usize = 1_000;
const MEMBERS: usize = 5_000;

fn bot_id() -> &'static UserId {
    user_id!("@bot:example.org")
}

/// Whether the day ends with a room of 5 000 members, which takes long to set up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum BigRoom {
    Yes,
    No,
}

/// Runs the day. `open` opens the store, the second time after a restart. Fails if a message cannot be read.
pub async fn run(
    open: impl AsyncFn() -> Subject,
    mut meter: Meter<'_>,
    big_room: BigRoom,
) -> Vec<Step> {
    let mut relay = Relay::default();
    let mut friends = Vec::new();
    for number in 0..FRIENDS {
        friends.push(Friend::new(&mut relay, number).await);
    }
    let users: Vec<OwnedUserId> =
        friends.iter().map(|friend| friend.machine.user_id().to_owned()).collect();

    let mut bot = Bot::open(&open, &mut meter, "open, a new machine").await;
    bot.serve(&mut meter, &mut relay, "first key upload").await;
    bot.sync(&mut meter, &mut relay, "one empty sync").await;

    let mut messages = Vec::new();
    for friend in &friends {
        messages.push(friend.talk(&mut relay, bot_id(), MESSAGES_EACH).await);
    }
    let messages = interleaved(messages);
    bot.sync(&mut meter, &mut relay, "a sync with 20 room keys, first contact").await;
    bot.serve(&mut meter, &mut relay, "upload of the one-time keys that were used").await;
    bot.track(&mut meter, &mut relay, &users, "key query for 20 users").await;
    bot.decrypt(&mut meter, &messages, "decrypt 200 messages from 20 rooms").await;

    bot.close().await;
    let mut bot = Bot::open(&open, &mut meter, "open, after a restart").await;
    bot.decrypt(&mut meter, &messages, "decrypt the 200, first thing after a restart").await;
    for _ in 0..EMPTY_SYNCS {
        bot.sync(&mut meter, &mut relay, "20 empty syncs").await;
    }
    bot.share(&mut meter, &mut relay, &users, "share a room key with 20 devices").await;
    bot.encrypt(&mut meter, &mut relay, &friends, "encrypt 50 messages").await;
    bot.import(&mut meter, "import 1 000 room keys", "import the same again").await;
    if big_room == BigRoom::Yes {
        bot.join_big_room(&mut meter, &mut relay, "key query for 5 000 users, 10 000 devices")
            .await;
    }
    bot.check_stored_rows().await;
    bot.close().await;
    meter.steps
}

/// Alternates between the friends' messages, as rooms are busy at the same time.
fn interleaved(mut of_friends: Vec<Vec<Message>>) -> Vec<Message> {
    let mut messages = Vec::new();
    for _ in 0..MESSAGES_EACH {
        messages.extend(of_friends.iter_mut().map(|messages| messages.remove(0)));
    }
    messages
}

struct Bot {
    machine: OlmMachine,
    subject: Subject,
    syncs: usize,
}

impl Bot {
    async fn open(
        open: &impl AsyncFn() -> Subject,
        meter: &mut Meter<'_>,
        step: &'static str,
    ) -> Self {
        let calls = meter.calls.clone();
        let opening = async {
            let subject = open().await;
            let spawned = Default::default();
            let store = Counted { store: subject.store.clone(), calls, spawned };
            Self { machine: open_machine(bot_id(), store).await, subject, syncs: 0 }
        };
        meter.measure(step, opening).await
    }

    /// Closes the store, so that no background work disturbs the next measurement.
    async fn close(self) {
        drop(self.machine);
        self.subject.store.close().await.unwrap();
    }

    /// Serves the machine's requests until there are none.
    async fn serve(&mut self, meter: &mut Meter<'_>, relay: &mut Relay, step: &'static str) {
        loop {
            let requests = meter.measure(step, self.machine.outgoing_requests()).await.unwrap();
            if requests.is_empty() {
                return;
            }
            let responses: Vec<HomeserverResponse> =
                requests.iter().map(|request| relay.respond(&self.machine, request)).collect();
            self.process_responses(meter, &responses, step).await;
        }
    }

    /// Processes the responses in one transaction.
    async fn process_responses(
        &mut self,
        meter: &mut Meter<'_>,
        responses: &[HomeserverResponse],
        step: &'static str,
    ) {
        let processing = self.subject.atomically(async {
            for response in responses {
                response.mark_as_sent(&self.machine).await?;
            }
            Ok(())
        });
        meter.measure(step, processing).await;
    }

    async fn sync(&mut self, meter: &mut Meter<'_>, relay: &mut Relay, step: &'static str) {
        self.syncs += 1;
        let sync = relay.next_sync(&self.machine, &format!("s{}", self.syncs));
        let changes = sync.changes();
        let receiving = self.machine.receive_sync_changes(changes, &SETTINGS);
        meter.measure(step, self.subject.atomically(receiving)).await;
    }

    async fn track(
        &mut self,
        meter: &mut Meter<'_>,
        relay: &mut Relay,
        users: &[OwnedUserId],
        step: &'static str,
    ) {
        let tracking = self.machine.update_tracked_users(users.iter().map(AsRef::as_ref));
        meter.measure(step, tracking).await.unwrap();
        self.serve(meter, relay, step).await;
    }

    async fn decrypt(&mut self, meter: &mut Meter<'_>, messages: &[Message], step: &'static str) {
        let events: Vec<_> = messages
            .iter()
            .map(|message| serde_json::from_value(message.event.clone()).unwrap())
            .collect();
        let decrypting = async {
            let mut decrypted = Vec::with_capacity(messages.len());
            for (message, event) in messages.iter().zip(&events) {
                let result = self.machine.decrypt_room_event(event, &message.room_id, &SETTINGS);
                decrypted.push(result.await.unwrap());
            }
            decrypted
        };
        let decrypted = meter.measure(step, decrypting).await;
        assert_eq!(decrypted.len(), FRIENDS * MESSAGES_EACH);
        for (message, decrypted) in messages.iter().zip(decrypted) {
            let event: Value = decrypted.event.deserialize_as().unwrap();
            assert_eq!(event["content"]["body"], message.body);
        }
    }

    async fn share(
        &mut self,
        meter: &mut Meter<'_>,
        relay: &mut Relay,
        users: &[OwnedUserId],
        step: &'static str,
    ) {
        let users = || users.iter().map(|user_id| &**user_id);
        let missing = meter.measure(step, self.machine.get_missing_sessions(users())).await;
        // Olm sessions exist since the friends' first messages.
        assert!(missing.unwrap().is_none());
        let settings = EncryptionSettings::default();
        let room_id = room(FRIENDS);
        let sharing = self.machine.share_room_key(&room_id, users(), settings);
        let requests = meter.measure(step, sharing).await.unwrap();
        for request in requests {
            let response = send_event_to_device::v3::Response::new();
            let marking = self.machine.mark_request_as_sent(&request.txn_id, &response);
            meter.measure(step, marking).await.unwrap();
            relay.deliver(&self.machine, &request);
        }
    }

    /// Encrypts messages, and asserts that every friend can decrypt them.
    async fn encrypt(
        &mut self,
        meter: &mut Meter<'_>,
        relay: &mut Relay,
        friends: &[Friend],
        step: &'static str,
    ) {
        let room_id = room(FRIENDS);
        let bodies: Vec<String> = (0..ENCRYPTED).map(|number| format!("{number}")).collect();
        let mut events = Vec::new();
        for body in &bodies {
            events.push(meter.measure(step, encrypt(&self.machine, &room_id, body)).await);
        }
        for friend in friends {
            relay.sync(&friend.machine, "s").await;
            assert_eq!(friend.read(&room_id, &events[0]).await, bodies[0]);
        }
        for (event, body) in events.iter().zip(&bodies) {
            assert_eq!(&friends[0].read(&room_id, event).await, body);
        }
    }

    async fn import(&mut self, meter: &mut Meter<'_>, step: &'static str, again: &'static str) {
        let keys = serde_json::to_value(exported_keys(IMPORTED).await).unwrap();
        for (step, new) in [(step, IMPORTED), (again, 0)] {
            let keys = serde_json::from_value(keys.clone()).unwrap();
            let importing = self.machine.store().import_exported_room_keys(keys, |_, _| {});
            assert_eq!(meter.measure(step, importing).await.unwrap().imported_count, new);
        }
    }

    /// Fetches the devices of a room that the bot has joined.
    async fn join_big_room(
        &mut self,
        meter: &mut Meter<'_>,
        relay: &mut Relay,
        step: &'static str,
    ) {
        let mut users = Vec::new();
        for (user_id, devices) in members(MEMBERS) {
            for keys in devices {
                relay.add_device(user_id, keys);
            }
            users.push(user_id.clone());
        }
        self.track(meter, relay, &users, step).await;
        let devices = self.machine.get_user_devices(&users[MEMBERS - 1], None).await.unwrap();
        assert_eq!(devices.devices().count(), 2);
    }

    async fn check_stored_rows(&self) {
        let counts = self.subject.store.inbound_group_session_counts(None).await.unwrap();
        // One of each friend, the bot's own, and the imported ones.
        assert_eq!(counts.total, FRIENDS + 1 + IMPORTED);
        let token = self.subject.store.next_batch_token().await.unwrap();
        assert_eq!(token, Some(format!("s{EMPTY_SYNCS}")));
    }
}
