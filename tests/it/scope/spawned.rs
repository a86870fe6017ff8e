//! Tasks that the SDK spawns within a scope may read, but a save would wait for the scope's end and deadlock.
//! This test checks that no spawned task saves.

use std::{collections::BTreeSet, sync::Arc};

use matrix_sdk_crypto::{
    CollectStrategy, LocalTrust,
    store::{IntoCryptoStore, MemoryStore},
};
use ruma::{RoomId, UserId, room_id, user_id};
use test_support::{
    bot_day::counted::Counted,
    machine::{Relay, encrypt, machine_of_device, open_machine},
    values,
};

#[tokio::test]
async fn no_task_that_the_sdk_spawns_saves_in_the_store() {
    let (alice, bob): (&UserId, &UserId) =
        (user_id!("@alice:example.org"), user_id!("@bob:example.org"));
    let room_id: &RoomId = room_id!("!room:example.org");
    let mut relay = Relay::default();
    let mut bobs = Vec::new();
    for number in 0..3 {
        let machine = machine_of_device(bob, &format!("DEVICE{number}"), MemoryStore::new()).await;
        relay.serve(&machine).await;
        bobs.push(machine);
    }
    let spawned = Arc::default();
    let store = Counted {
        store: MemoryStore::new().into_crypto_store(),
        calls: Arc::default(),
        spawned: Arc::clone(&spawned),
    };
    let alices = open_machine(alice, store).await;
    relay.serve(&alices).await;
    // A key query, Olm sessions, a room key, a message, and a bundle of room keys.
    relay.track(&alices, &[bob]).await;
    relay.share(&alices, room_id, &[bob]).await;
    encrypt(&alices, room_id, "hello").await;
    let bundle = values::bundle(room_id, alice, "mxc://example.org/bundle", [1, 2]).bundle_data;
    let device = alices.get_device(bob, "DEVICE0".into(), None).await.unwrap().unwrap();
    device.set_local_trust(LocalTrust::Verified).await.unwrap();
    let strategy = CollectStrategy::OnlyTrustedDevices;
    alices.share_room_key_bundle_data(bob, &strategy, bundle).await.unwrap();
    // A change of the own device clears the SDK's cache of Olm sessions.
    let device = alices.get_device(alice, "DEVICE".into(), None).await.unwrap().unwrap();
    device.set_local_trust(LocalTrust::Verified).await.unwrap();
    relay.share_directly(&alices, room_id!("!another:example.org"), &[bob]).await;
    // The replies.
    relay.track(&bobs[0], &[alice]).await;
    relay.share(&bobs[0], room_id, &[alice]).await;
    relay.sync(&alices, "s1").await;
    relay.track(&alices, &[bob, alice]).await;

    let spawned: BTreeSet<&str> = spawned.lock().unwrap().clone();
    for read in ["get_device", "get_sessions"] {
        assert!(spawned.contains(read), "no spawned task called {read}: {spawned:?}");
    }
    let is_read = |name: &&str| {
        ["get_", "load_", "is_", "has_", "next_", "inbound_group_session"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    };
    let others: Vec<_> = spawned.iter().filter(|name| !is_read(name)).collect();
    assert!(others.is_empty(), "spawned tasks save: {others:?}");
}
