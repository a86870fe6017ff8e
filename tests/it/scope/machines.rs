//! Real machines within `atomically`: the reads that the SDK spawns must see the scope's saves.

use matrix_sdk_crypto::{
    LocalTrust, OlmError, OlmMachine,
    store::{CryptoStore, MemoryStore},
    types::DeviceKeys,
};
use matrix_sdk_postgres::{OwnershipSettings, PoolSettings, PostgresCryptoStore, testing};
use ruma::{RoomId, UserId, api::client::keys::get_keys, room_id, serde::Raw, user_id};
use serde_json::json;
use test_support::{
    Mode,
    machine::{Relay, decrypt, encrypt, open_machine},
};

use super::{config, open};

fn alice() -> &'static UserId {
    user_id!("@alice:example.org")
}

fn bob() -> &'static UserId {
    user_id!("@bob:example.org")
}

/// Alice's machine on the store, and Bob's, which have each other's device keys.
async fn machines_with_device_keys(store: &PostgresCryptoStore) -> (Relay, OlmMachine, OlmMachine) {
    let mut relay = Relay::default();
    let bobs = open_machine(bob(), MemoryStore::new()).await;
    relay.serve(&bobs).await;
    let alices = open_machine(alice(), store.clone()).await;
    relay.serve(&alices).await;
    relay.track(&alices, &[bob()]).await;
    (relay, alices, bobs)
}

async fn verify(machine: &OlmMachine, user_id: &UserId) -> Result<(), OlmError> {
    let device = machine.get_device(user_id, "DEVICE".into(), None).await?.unwrap();
    Ok(device.set_local_trust(LocalTrust::Verified).await?)
}

/// A change of the own device clears the SDK's cache of Olm sessions, which are then read by spawned tasks. If
/// those read the state before the scope, a chain index would be used twice.
#[tokio::test(flavor = "multi_thread")]
async fn two_room_keys_with_a_change_of_our_own_device_between_both_arrive() {
    for (pool_size, known_before) in [(4, true), (1, true), (4, false)] {
        let database = testing::database().unwrap();
        let store = open(&config(&database.url(), pool_size)).await;
        let (mut relay, alices, bobs) = machines_with_device_keys(&store).await;
        let rooms = ["!first", "!second", "!third"]
            .map(|name| RoomId::parse(format!("{name}:example.org")).unwrap());
        if known_before {
            relay.share(&alices, &rooms[0], &[bob()]).await;
        }
        let scope = store.atomically::<_, OlmError>(async {
            relay.share(&alices, &rooms[1], &[bob()]).await;
            verify(&alices, alice()).await?;
            relay.share_directly(&alices, &rooms[2], &[bob()]).await;
            Ok(())
        });
        scope.await.unwrap();
        relay.sync(&bobs, "s1").await;
        for room_id in &rooms[1..] {
            let event = encrypt(&alices, room_id, "hello").await;
            assert_eq!(decrypt(&bobs, room_id, &event).await, "hello", "{pool_size} connections");
        }
    }
}

/// The response to a key query in which the device has a new name.
async fn renamed(machine: &OlmMachine) -> get_keys::v3::Response {
    let device = machine.get_device(bob(), "DEVICE".into(), None).await.unwrap().unwrap();
    let mut keys = serde_json::to_value(device.as_device_keys()).unwrap();
    keys["unsigned"] = json!({ "device_display_name": "a new name" });
    let keys: DeviceKeys = serde_json::from_value(keys).unwrap();
    let mut response = get_keys::v3::Response::new();
    let devices = [("DEVICE".into(), Raw::new(&keys).unwrap().cast_unchecked())].into();
    response.device_keys.insert(bob().to_owned(), devices);
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn trust_set_before_a_key_query_stays() {
    for pool_size in [4, 1] {
        let database = testing::database().unwrap();
        let store = open(&config(&database.url(), pool_size)).await;
        let (_relay, alices, _bobs) = machines_with_device_keys(&store).await;
        let answer = renamed(&alices).await;
        let (id, _) = alices.query_keys_for_users([bob()]);
        let scope = store.atomically::<_, OlmError>(async {
            verify(&alices, bob()).await?;
            alices.mark_request_as_sent(&id, &answer).await
        });
        scope.await.unwrap();
        let device = alices.get_device(bob(), "DEVICE".into(), None).await.unwrap().unwrap();
        assert!(device.is_locally_trusted(), "{pool_size} connections");
        assert_eq!(device.display_name(), Some("a new name"));
    }
}

/// Two bots over a pool of two connections, each within `atomically` with a connection of its own, and the
/// reads that they spawn.
#[tokio::test(flavor = "multi_thread")]
async fn scopes_that_hold_all_connections_do_not_deadlock() {
    for (bots, pool_size) in [(1, 1), (2, 2)] {
        let database = testing::database().unwrap();
        let config = |name: &str| {
            Mode::Key
                .config(&database.url(), name)
                .pool(PoolSettings {
                    max_size: pool_size,
                    wait_timeout: std::time::Duration::from_secs(3),
                    ..Default::default()
                })
                .access(OwnershipSettings { cache_bytes: 0, ..Default::default() })
        };
        let pool = config("any").build_pool().unwrap();
        let barrier = tokio::sync::Barrier::new(bots);
        let barrier = &barrier;
        let work = (0..bots).map(|number| {
            let (pool, config) = (pool.clone(), config(&format!("bot {number}")));
            async move {
                let store = PostgresCryptoStore::open_with_pool(pool, &config).await.unwrap();
                let (mut relay, alices, bobs) = machines_with_device_keys(&store).await;
                let room_id = room_id!("!room:example.org");
                let answer = renamed(&alices).await;
                let (id, _) = alices.query_keys_for_users([bob()]);
                let scope = store.atomically::<_, OlmError>(async {
                    store.set_custom_value("key", vec![1]).await.unwrap();
                    store.get_custom_value("key").await.unwrap();
                    // Each scope holds a connection.
                    barrier.wait().await;
                    verify(&alices, bob()).await?;
                    alices.mark_request_as_sent(&id, &answer).await?;
                    relay.share(&alices, room_id, &[bob()]).await;
                    barrier.wait().await;
                    Ok(())
                });
                scope.await.unwrap();
                relay.sync(&bobs, "s1").await;
                let event = encrypt(&alices, room_id, "hello").await;
                assert_eq!(decrypt(&bobs, room_id, &event).await, "hello");
            }
        });
        futures_util::future::join_all(work).await;
    }
}
