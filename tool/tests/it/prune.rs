//! `prune`.

use matrix_sdk_crypto::store::CryptoStore;

use crate::support::Place;

const TABLES: [(&str, &str); 6] = [
    ("--message-hashes", "message_hashes"),
    ("--withheld", "withheld_sessions"),
    ("--requests", "key_requests"),
    ("--gone-devices", "olm_sessions"),
    ("--outbound", "megolm_outbound_sessions"),
    ("--room-keys", "megolm_inbound_sessions"),
];

async fn counts(place: &Place) -> Vec<i64> {
    let mut counts = Vec::new();
    for (_, table) in TABLES {
        counts.push(place.number(&format!("SELECT count(*) FROM matrix_sdk.{table}")).await);
    }
    counts
}

/// Makes the rows look as if they had come 100 days ago.
async fn age(place: &Place) {
    let client = place.client().await;
    for (_, table) in TABLES.iter().filter(|(rule, _)| *rule != "--outbound") {
        let sql = format!("UPDATE matrix_sdk.{table} SET created_at = now() - interval '100 days'");
        client.batch_execute(&sql).await.unwrap();
    }
}

#[tokio::test]
async fn each_rule_is_off_until_it_is_given_and_deletes_by_its_age() {
    let place = Place::new();
    let (bot, _) = place.filled("bot").await;
    let commits = bot.commit_count().await.unwrap();
    place
        .client()
        .await
        .batch_execute("UPDATE matrix_sdk.key_requests SET sent_out = true")
        .await
        .unwrap();
    age(&place).await;
    let before = counts(&place).await;
    assert_eq!(before, [1; 6]);
    let none = place.run_unlocked(&["prune", "--account", "bot", "--yes"]).await.expect(1);
    assert!(none.err.contains("no rule is given"), "{none:?}");

    for (index, (rule, table)) in TABLES.iter().enumerate() {
        if *rule == "--outbound" || *rule == "--gone-devices" {
            continue;
        }
        let run = |age: &'static str| ["prune", "--account", "bot", "--yes", rule, age];
        place.run(&run("101days")).await.expect(0);
        assert_eq!(counts(&place).await[index], 1, "{rule}");
        let dry = [&run("99days")[..], &["--dry-run"]].concat();
        let dry = place.run(&dry).await.expect(0).out;
        assert!(dry.contains(table) && dry.contains("1 rows"), "{dry}");
        assert_eq!(counts(&place).await[index], 1, "{rule}");
        place.run(&run("99days")).await.expect(0);
        assert_eq!(counts(&place).await[index], 0, "{rule}");
    }
    // It was done while the bot ran, which has not committed anything.
    assert_eq!(bot.commit_count().await.unwrap(), commits);
    assert_eq!(counts(&place).await.iter().sum::<i64>(), 2);
    bot.set_custom_value("key", b"value".to_vec()).await.unwrap();
    assert!(bot.get_inbound_group_sessions().await.unwrap().is_empty());
}

/// The fixture's session is with a device that it knows.
#[tokio::test]
async fn sessions_with_devices_that_are_known_stay() {
    let place = Place::new();
    let (bot, fixture) = place.filled("bot").await;
    age(&place).await;
    let prune = ["prune", "--account", "bot", "--yes", "--gone-devices", "99days"];
    let locked = place.run(&prune).await.expect(1);
    assert!(locked.err.contains("STORE_PASSPHRASE_FILE"), "{locked:?}");
    place.run_unlocked(&prune).await.expect(0);
    assert_eq!(counts(&place).await[3], 1);

    let deleted = matrix_sdk_crypto::store::types::DeviceChanges {
        deleted: vec![fixture.other_device.clone()],
        ..Default::default()
    };
    let changes =
        matrix_sdk_crypto::store::types::Changes { devices: deleted, ..Default::default() };
    bot.save_changes(changes).await.unwrap();
    place.run_unlocked(&prune).await.expect(0);
    assert_eq!(counts(&place).await[3], 0);
}

/// The fixture's session was made just now: it can be pruned when it was given up.
#[tokio::test]
async fn sessions_to_send_with_stay_until_they_are_expired() {
    let place = Place::new();
    let (bot, fixture) = place.filled("bot").await;
    let prune = ["prune", "--account", "bot", "--yes", "--outbound", "0s"];
    place.run_unlocked(&prune).await.expect(0);
    assert_eq!(counts(&place).await[4], 1);
    fixture.outbound.invalidate_session();
    let changes = matrix_sdk_crypto::store::types::Changes {
        outbound_group_sessions: vec![fixture.outbound.clone()],
        ..Default::default()
    };
    bot.save_changes(changes).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    place.run_unlocked(&["prune", "--account", "bot", "--yes", "--outbound", "1h"]).await.expect(0);
    assert_eq!(counts(&place).await[4], 1);
    place.run_unlocked(&prune).await.expect(0);
    assert_eq!(counts(&place).await[4], 0);
}

#[tokio::test]
async fn an_age_beyond_all_ages_matches_nothing() {
    let place = Place::new();
    drop(place.filled("bot").await);
    let before = counts(&place).await;
    let prune = ["prune", "--account", "bot", "--yes", "--withheld", "30000000000years"];
    place.run(&prune).await.expect(0);
    assert_eq!(counts(&place).await, before);
}
