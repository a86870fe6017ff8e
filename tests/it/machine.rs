//! Real `OlmMachine`s on the store.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use matrix_sdk_crypto::vodozemac::megolm::MegolmMessage;
use matrix_sdk_postgres::testing;
use ruma::{room_id, user_id};
use test_support::{
    Mode,
    machine::{Relay, decrypt, encrypt, open_machine},
};

#[tokio::test]
async fn machines_dropped_and_reopened_decrypt_old_and_new_messages() {
    for mode in [Mode::Plain, Mode::Passphrase, Mode::Key] {
        let database = testing::database().unwrap();
        let (alice_id, bob_id) = (user_id!("@alice:example.org"), user_id!("@bob:example.org"));
        let room_id = room_id!("!room:example.org");
        let mut relay = Relay::default();

        let alice = open_machine(alice_id, mode.open(&database.url(), "alice").await).await;
        let bob = open_machine(bob_id, mode.open(&database.url(), "bob").await).await;
        relay.serve(&alice).await;
        relay.serve(&bob).await;
        relay.track(&alice, &[bob_id]).await;
        relay.track(&bob, &[alice_id]).await;
        relay.share(&alice, room_id, &[bob_id]).await;
        let before = encrypt(&alice, room_id, "before the restart").await;
        relay.sync(&bob, "s1").await;
        let (alice_key, bob_key) = (alice.identity_keys(), bob.identity_keys());
        drop((alice, bob));

        let alice = open_machine(alice_id, mode.open(&database.url(), "alice").await).await;
        let bob = open_machine(bob_id, mode.open(&database.url(), "bob").await).await;
        assert_eq!((alice.identity_keys(), bob.identity_keys()), (alice_key, bob_key));
        assert_eq!(decrypt(&bob, room_id, &before).await, "before the restart", "{mode:?}");

        // The ratchet continues without a new room key.
        let after = encrypt(&alice, room_id, "after the restart").await;
        assert_eq!(after["content"]["session_id"], before["content"]["session_id"]);
        assert_eq!(decrypt(&bob, room_id, &after).await, "after the restart", "{mode:?}");

        // Bob's Olm session with Alice is stored, too, so he can reply.
        relay.share(&bob, room_id, &[alice_id]).await;
        let answer = encrypt(&bob, room_id, "an answer").await;
        relay.sync(&alice, "s2").await;
        assert_eq!(decrypt(&alice, room_id, &answer).await, "an answer", "{mode:?}");
        let token = alice.store().next_batch_token().await.unwrap();
        assert_eq!(token.as_deref(), Some("s2"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_megolm_index_is_used_twice_after_concurrent_encryptions_and_a_restart() {
    let database = testing::database().unwrap();
    let (alice_id, bob_id) = (user_id!("@alice:example.org"), user_id!("@bob:example.org"));
    let room_id = room_id!("!room:example.org");
    let mut relay = Relay::default();

    let alice = open_machine(alice_id, Mode::Key.open(&database.url(), "alice").await).await;
    let bob = open_machine(bob_id, Mode::Plain.open(&database.url(), "bob").await).await;
    relay.serve(&alice).await;
    relay.serve(&bob).await;
    relay.track(&alice, &[bob_id]).await;
    relay.share(&alice, room_id, &[bob_id]).await;

    // Few enough that the indices reserved ahead leave the session within its 100 messages.
    let bodies: Vec<String> = (0..48).map(|number| format!("message {number}")).collect();
    let mut events = join_all(bodies.iter().map(|body| encrypt(&alice, room_id, body))).await;
    drop(alice);
    let alice = open_machine(alice_id, Mode::Key.open(&database.url(), "alice").await).await;
    for number in 48..56 {
        events.push(encrypt(&alice, room_id, &format!("message {number}")).await);
    }

    let mut indices = BTreeSet::new();
    for event in &events {
        assert_eq!(event["content"]["session_id"], events[0]["content"]["session_id"]);
        let ciphertext = event["content"]["ciphertext"].as_str().unwrap();
        let message = MegolmMessage::from_base64(ciphertext).unwrap();
        assert!(indices.insert(message.message_index()), "an index was used twice");
    }
    // A restart may skip indices that were reserved, and no other.
    assert_eq!(indices.iter().take(48).copied().collect::<Vec<_>>(), (0..48).collect::<Vec<_>>());
    let after: Vec<u32> = indices.iter().skip(48).copied().collect();
    assert!(after[0] <= 48 + 32 && after.is_sorted_by(|a, b| a + 1 == *b), "{after:?}");

    relay.sync(&bob, "s1").await;
    for (number, event) in events.iter().enumerate() {
        assert_eq!(decrypt(&bob, room_id, event).await, format!("message {number}"));
    }
}
