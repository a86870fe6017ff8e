//! `reset-device`.

use matrix_sdk_crypto::store::CryptoStore;
use ruma::{room_id, user_id};

use test_support::machine::{Relay, decrypt, encrypt, machine_of_device, open_machine};

use crate::support::Place;

const COMMAND: [&str; 4] = ["reset-device", "--account", "bot", "--yes"];

#[tokio::test]
async fn a_new_device_keeps_the_room_keys_and_sends_with_new_ones() {
    let place = Place::new();
    let (alice_id, bot_id) = (user_id!("@alice:example.org"), user_id!("@bot:example.org"));
    let (old_room, new_room) = (room_id!("!old:example.org"), room_id!("!new:example.org"));
    let mut relay = Relay::default();
    let alice = open_machine(alice_id, place.open("alice").await).await;
    let store = place.open("bot").await;
    let bot = open_machine(bot_id, store.clone()).await;
    bot.bootstrap_cross_signing(false).await.unwrap();
    let master_key = bot.cross_signing_status().await.has_master;
    relay.serve(&alice).await;
    relay.serve(&bot).await;
    relay.track(&alice, &[bot_id]).await;
    relay.track(&bot, &[alice_id]).await;
    relay.share(&alice, old_room, &[bot_id]).await;
    let old = encrypt(&alice, old_room, "old").await;
    relay.sync(&bot, "s1").await;
    relay.share(&bot, old_room, &[alice_id]).await;
    let ours = encrypt(&bot, old_room, "ours").await;

    let refused = place.run(&COMMAND).await.expect(4);
    assert!(refused.err.contains("is in use by"), "{refused:?}");
    drop(bot);
    store.close().await.unwrap();
    place.run(&COMMAND[..3]).await.expect(4);
    let counted = place.run(&["reset-device", "--account", "bot", "--dry-run"]).await.expect(0);
    assert!(counted.out.contains("olm_sessions"), "{counted:?}");
    let reset = place.run(&COMMAND).await.expect(0).out;
    assert!(reset.contains("NEW device id"), "{reset}");
    // What was believed to be closed is fenced, and others are not touched.
    assert!(store.reopen().await.is_err());
    drop(store);

    let bot = machine_of_device(bot_id, "NEWDEVICE", place.open("bot").await).await;
    assert!(master_key && bot.cross_signing_status().await.has_master);
    assert_eq!(decrypt(&bot, old_room, &old).await, "old");
    relay.serve(&bot).await;
    relay.track(&bot, &[alice_id]).await;
    alice.mark_all_tracked_users_as_dirty().await.unwrap();
    relay.track(&alice, &[bot_id]).await;
    relay.share(&alice, new_room, &[bot_id]).await;
    let new = encrypt(&alice, new_room, "new").await;
    relay.sync(&bot, "s2").await;
    assert_eq!(decrypt(&bot, new_room, &new).await, "new");
    relay.share(&bot, old_room, &[alice_id]).await;
    let answer = encrypt(&bot, old_room, "answer").await;
    assert_ne!(answer["content"]["session_id"], ours["content"]["session_id"]);
    relay.sync(&alice, "s3").await;
    assert_eq!(decrypt(&alice, old_room, &answer).await, "answer");
}

#[tokio::test]
async fn only_what_belongs_to_the_device_is_deleted() {
    let place = Place::new();
    let (bot, _) = place.filled("bot").await;
    let (_other, _) = place.filled("other").await;
    bot.close().await.unwrap();
    place.run(&COMMAND).await.expect(0);
    let stats = place.run(&["stats", "--json"]).await.expect(0).json();
    let tables = |account: usize| stats["accounts"][account]["tables"].as_array().unwrap().clone();
    let empty: Vec<_> = tables(0).into_iter().filter(|table| table["rows"] == 0).collect();
    let mut empty: Vec<_> = empty.iter().map(|table| table["name"].as_str().unwrap()).collect();
    empty.sort_unstable();
    let of_the_device = [
        "key_requests",
        "megolm_outbound_sessions",
        "message_hashes",
        "olm_sessions",
        "sync_tokens",
        "tracked_users",
    ];
    assert_eq!(empty, of_the_device);
    let data = tables(0).into_iter().find(|table| table["name"] == "account_data").unwrap();
    assert_eq!(data["rows"], 4, "identity, backup key, backup version, dehydrated device");
    assert!(tables(1).iter().all(|table| table["rows"].as_u64() > Some(0)));
}

/// Rows of the old device that were set aside do not come back to the new one.
#[tokio::test]
async fn rows_of_the_device_that_were_set_aside_are_deleted_too() {
    let place = Place::new();
    let (bot, _) = place.filled("bot").await;
    bot.close().await.unwrap();
    let client = place.client().await;
    for table in ["olm_sessions", "megolm_outbound_sessions", "megolm_inbound_sessions"] {
        let damage = format!("UPDATE matrix_sdk.{table} SET data = '\\x00' || data");
        client.batch_execute(&damage).await.unwrap();
    }
    let aside = ["verify", "--account", "bot", "--quarantine", "--yes"];
    place.run_unlocked(&aside).await.expect(0);
    let counted = place.run(&["reset-device", "--account", "bot", "--dry-run"]).await.expect(0);
    assert!(counted.out.contains("quarantined_rows"), "{counted:?}");
    place.run(&COMMAND).await.expect(0);
    let back = place.run(&["verify", "--account", "bot", "--put-back", "--yes"]).await.expect(0);
    assert_eq!(back.out, "1 rows put back\n");
    assert_eq!(place.number("SELECT count(*) FROM matrix_sdk.olm_sessions").await, 0);
}
