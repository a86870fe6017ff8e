//! Message indices reserved ahead: a process that is killed or superseded at a random moment of a stream
//! of messages uses no index twice, and every message that it has sent is readable.

use std::collections::BTreeSet;

use matrix_sdk_crypto::{
    EncryptionSettings, OlmMachine,
    store::{CryptoStoreError, MemoryStore},
    vodozemac::megolm::MegolmMessage,
};
use matrix_sdk_postgres::testing;
use ruma::{OwnedRoomId, RoomId, UserId, room_id, user_id};
use serde_json::{Value, json};
use test_support::{
    Mode,
    child_process::{self, ChildProcess},
    figure,
    machine::{Relay, decrypt, open_machine},
    milliseconds, rounds, seeded,
};
use tokio::task::block_in_place;

const NAME: &str = "reserved_indices::a_killed_or_superseded_process_uses_no_index_twice";

/// So many messages a process: its third save reserves 32 indices, and it needs a fourth.
const MESSAGES: usize = 80;

/// The processes move on from room to room, as no session may be rotated within the test.
const ROOMS: usize = 4;

fn bot() -> &'static UserId {
    user_id!("@bot:example.org")
}

fn alice() -> &'static UserId {
    user_id!("@alice:example.org")
}

fn room(number: usize) -> OwnedRoomId {
    RoomId::parse(format!("!room{number}:example.org")).unwrap()
}

/// A bot that has shared the rooms' keys with Alice; returns her machine.
async fn shared_room_keys(url: &str) -> OlmMachine {
    let mut relay = Relay::default();
    let alice = open_machine(alice(), MemoryStore::new()).await;
    relay.serve(&alice).await;
    let store = Mode::Plain.open(url, "bot").await;
    let bot = open_machine(bot(), store.clone()).await;
    relay.serve(&bot).await;
    let users = [alice.user_id()];
    relay.track(&bot, &users).await;
    // Another room's key, so that there is an Olm session.
    relay.share(&bot, room_id!("!other:example.org"), &users).await;
    let settings = EncryptionSettings { rotation_period_msgs: 10_000, ..Default::default() };
    for number in 0..ROOMS {
        let (room, users) = (room(number), users.into_iter());
        for request in bot.share_room_key(&room, users, settings.clone()).await.unwrap() {
            relay.send(&bot, &request).await;
        }
    }
    relay.sync(&alice, "next").await;
    alice
}

/// The child's side: sends messages to a room until it is killed or superseded.
async fn send_until_killed(task: &str) {
    let (room, url) = task.split_once(' ').unwrap();
    let room = RoomId::parse(room).unwrap();
    let store = Mode::Plain.open(url, "bot").await;
    let machine = open_machine(bot(), store).await;
    let content = serde_json::from_value(json!({ "msgtype": "m.text", "body": "sent" })).unwrap();
    for _ in 0..MESSAGES {
        let sent: Result<_, CryptoStoreError> = machine
            .encrypt_room_event_raw(&room, "m.room.message", &content)
            .await
            .map_err(|error| match error {
                matrix_sdk_crypto::MegolmError::Store(error) => error,
                other => panic!("{other}"),
            });
        match sent {
            Ok(sent) => child_process::send(json!([&room, sent.content])),
            Err(error) => {
                return assert!(format!("{error:?}").contains("was taken over"), "{error:?}");
            }
        }
    }
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_or_superseded_process_uses_no_index_twice() {
    if let Some(task) = child_process::task() {
        return send_until_killed(&task).await;
    }
    let mut rng = seeded("message indices");
    let database = testing::database().unwrap();
    let url = database.url();
    let alice = shared_room_keys(&url).await;
    let (kills, mut takeovers, mut sent) = (rounds(20, 200), 0, Vec::new());
    let mut processes = 0;
    let mut start = |sent: &mut Vec<String>| {
        let room = room(processes * ROOMS / (kills + 1));
        let mut child = ChildProcess::start(NAME, &format!("{room} {url}"));
        processes += 1;
        sent.push(child.receive().expect("a first message"));
        child
    };
    let mut child = block_in_place(|| start(&mut sent));
    for _ in 0..kills {
        let pause = milliseconds(&mut rng, 60);
        let is_takeover = rng.bool();
        takeovers += usize::from(is_takeover);
        child = block_in_place(|| {
            std::thread::sleep(pause);
            if is_takeover {
                let next = start(&mut sent);
                sent.extend(child.kill());
                next
            } else {
                sent.extend(child.kill());
                start(&mut sent)
            }
        });
    }
    sent.extend(block_in_place(|| child.kill()));
    let mut used = BTreeSet::new();
    for sent in &sent {
        let (room, content): (OwnedRoomId, Value) = serde_json::from_str(sent).unwrap();
        let ciphertext = content["ciphertext"].as_str().unwrap();
        let index = MegolmMessage::from_base64(ciphertext).unwrap().message_index();
        let is_new = used.insert((room.clone(), index));
        assert!(is_new, "index {index} of {room} was used twice");
        let event = json!({
            "event_id": format!("${index}"),
            "origin_server_ts": 1,
            "sender": bot(),
            "type": "m.room.encrypted",
            "content": content,
        });
        assert_eq!(decrypt(&alice, &room, &event).await, "sent");
    }
    figure("process killed (kill -9) between messages, times", kills);
    figure("of these after a takeover", takeovers);
    figure("messages sent, each readable, no index twice", sent.len());
}
