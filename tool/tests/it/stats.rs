//! `stats`.

use matrix_sdk_crypto::store::CryptoStore;

use crate::support::Place;

#[tokio::test]
async fn every_table_is_counted_beside_a_running_bot() {
    let place = Place::new();
    let (bot, _) = place.filled("bot").await;
    place.open("other").await.close().await.unwrap();
    let before = bot.commit_count().await.unwrap();

    let json = place.run(&["stats", "--json"]).await.expect(0).json();
    let names: Vec<_> = json["accounts"].as_array().unwrap().iter().map(|a| &a["name"]).collect();
    assert_eq!(names, ["bot", "other"]);
    let (account, other) = (&json["accounts"][0], &json["accounts"][1]);
    for table in account["tables"].as_array().unwrap() {
        assert!(table["rows"].as_u64() > Some(0), "{table}");
        assert!(table["bytes"].as_u64() > Some(0), "{table}");
    }
    assert_eq!(account["is_encrypted"], true);
    assert_eq!((&account["room_keys"], &account["rooms_with_keys"]), (&1.into(), &1.into()));
    assert_eq!(account["owner"]["is_alive"], true);
    assert_eq!(account["room_keys_per_day"].as_object().unwrap().len(), 1);
    assert_eq!(account["commits"], before);
    assert_eq!(other["owner"]["is_alive"], false);
    assert_eq!(other["bytes_per_100_rooms"], serde_json::Value::Null);

    let text = place.run(&["stats", "--account", "bot"]).await.expect(0).out;
    assert!(text.contains("1 in 1 rooms") && text.contains(", alive"), "{text}");
    assert!(!text.contains("account other"), "{text}");
    let size = text.lines().find_map(|line| line.trim().strip_prefix("size ")).unwrap().trim();
    let (size, per_100) = size.split_once(" (").unwrap();
    assert_eq!(text.lines().next().unwrap(), format!("schema matrix_sdk: 1 account, {size}"));
    assert!(per_100.contains(" per 100 encrypted rooms, extrapolated from 1:"), "{text}");
    let text = place.run(&["stats"]).await.expect(0).out;
    assert!(text.starts_with("schema matrix_sdk: 2 accounts, "), "{text}");
    assert!(text.contains("no encrypted rooms"), "{text}");
    // It has taken nothing.
    bot.set_custom_value("key", b"value".to_vec()).await.unwrap();
    assert_eq!(bot.commit_count().await.unwrap(), before + 1);
}

#[tokio::test]
async fn an_account_or_a_schema_that_is_not_there_is_named() {
    let place = Place::new();
    let missing = place.run(&["stats"]).await.expect(1);
    assert!(missing.err.contains("the schema \"matrix_sdk\" does not exist"), "{}", missing.err);
    drop(place.open("bot").await);
    let missing = place.run(&["stats", "--account", "bto"]).await.expect(1);
    assert!(missing.err.contains("there is no account \"bto\""), "{}", missing.err);
}
