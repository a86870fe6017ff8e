//! `verify`.

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::PostgresCryptoStore;
use serde_json::Value;

use test_support::fixture::{CUSTOM_KEY, Fixture, own_user, room};

use crate::support::Place;

const COMMAND: [&str; 3] = ["verify", "--account", "bot"];

/// Tables whose rows hold a value.
const WITH_VALUES: [&str; 15] = [
    "account_data",
    "custom_values",
    "devices",
    "encrypted_rooms",
    "user_identities",
    "megolm_inbound_sessions",
    "key_requests",
    "olm_sessions",
    "megolm_outbound_sessions",
    "room_key_bundles",
    "pending_key_bundles",
    "secrets_inbox",
    "sync_tokens",
    "tracked_users",
    "withheld_sessions",
];

fn table<'a>(report: &'a Value, name: &str) -> &'a Value {
    let tables = report["tables"].as_array().unwrap();
    tables.iter().find(|table| table["table"] == name).unwrap()
}

#[tokio::test]
async fn every_row_of_every_table_is_opened() {
    let place = Place::new();
    let (bot, _) = place.filled("bot").await;
    let report = place.run_unlocked(&[&COMMAND[..], &["--json"]].concat()).await.expect(0).json();
    for table in report["tables"].as_array().unwrap() {
        assert!(table["rows"].as_u64() > Some(0) && table["corrupt"] == 0, "{table}");
    }
    let client = place.client().await;
    for name in WITH_VALUES {
        let damage = format!("UPDATE matrix_sdk.{name} SET data = '\\x00' || data");
        client.batch_execute(&damage).await.unwrap();
    }
    let report = place.run_unlocked(&[&COMMAND[..], &["--json"]].concat()).await.expect(3).json();
    for table in report["tables"].as_array().unwrap() {
        let holds_value = WITH_VALUES.contains(&table["table"].as_str().unwrap());
        let expected = if holds_value { table["rows"].clone() } else { 0.into() };
        assert_eq!(table["corrupt"], expected, "{table}");
    }
    drop(bot);
}

/// In a plain account, too, where nothing is sealed.
#[tokio::test]
async fn rows_that_were_exchanged_are_found() {
    let place = Place::new();
    let store = PostgresCryptoStore::open_with_config(&place.config("bot")).await.unwrap();
    Fixture::new().await.fill(&store).await;
    place.run(&COMMAND).await.expect(0);
    let client = place.client().await;
    for sql in [
        "UPDATE matrix_sdk.devices SET device_id = 'other' || device_id",
        "UPDATE matrix_sdk.megolm_inbound_sessions SET sender_key = 'someone'",
        "UPDATE matrix_sdk.tracked_users SET user_id = '@eve:example.org'",
    ] {
        client.batch_execute(sql).await.unwrap();
    }
    let report = place.run(&[&COMMAND[..], &["--json"]].concat()).await.expect(3).json();
    for (name, rows) in [("devices", 2), ("megolm_inbound_sessions", 1), ("tracked_users", 1)] {
        assert_eq!(table(&report, name)["corrupt"], rows, "{name}");
    }
}

#[tokio::test]
async fn corrupt_rows_are_set_aside_beside_a_running_bot_and_put_back() {
    let place = Place::new();
    let (bot, fixture) = place.filled("bot").await;
    let session_id = fixture.inbound.session_id().to_owned();
    let commits = bot.commit_count().await.unwrap();
    let client = place.client().await;
    for name in ["megolm_inbound_sessions", "custom_values", "account_data"] {
        let damage = format!("UPDATE matrix_sdk.{name} SET data = '\\x00' || data");
        client.batch_execute(&damage).await.unwrap();
    }
    let before = rows(&place).await;
    let quarantine = [&COMMAND[..], &["--quarantine"]].concat();
    place.run_unlocked(&quarantine).await.expect(4);
    let quarantine = [&quarantine[..], &["--yes", "--json"]].concat();
    // The Olm account stays where it is.
    let report = place.run_unlocked(&quarantine).await.expect(3).json();
    assert_eq!(table(&report, "account_data")["quarantined"], 0);
    assert_eq!(table(&report, "megolm_inbound_sessions")["quarantined"], 1);
    let aside = "SELECT count(*) FROM matrix_sdk.quarantined_rows";
    assert_eq!(place.number(aside).await, 2);
    // Again it would not help.
    let left = place.run_unlocked(&quarantine[..quarantine.len() - 1]).await.expect(3).out;
    assert!(left.contains("reset-device") && !left.contains("--quarantine"), "{left}");

    // The bot forgets what it has cached, and counts no commit of ours.
    bot.set_custom_value("other", b"value".to_vec()).await.unwrap();
    assert_eq!(bot.commit_count().await.unwrap(), commits + 1);
    assert!(bot.get_inbound_group_session(room(), &session_id).await.unwrap().is_none());
    assert!(bot.get_inbound_group_sessions().await.unwrap().is_empty());
    assert_eq!(bot.get_custom_value(CUSTOM_KEY).await.unwrap(), None);
    bot.remove_custom_value("other").await.unwrap();

    let put_back = [&COMMAND[..], &["--put-back", "--yes"]].concat();
    let back = place.run(&put_back).await.expect(0).out;
    assert_eq!(back, "2 rows put back\n");
    assert_eq!(place.number(aside).await, 0);
    assert_eq!(rows(&place).await, before);
    bot.set_custom_value("other", b"value".to_vec()).await.unwrap();
    assert!(bot.get_inbound_group_session(room(), &session_id).await.is_err());
}

/// A newer row is not replaced by the corrupt one.
#[tokio::test]
async fn a_row_whose_key_is_in_use_again_stays_set_aside() {
    let place = Place::new();
    let (bot, fixture) = place.filled("bot").await;
    let client = place.client().await;
    let damage = "UPDATE matrix_sdk.megolm_inbound_sessions SET data = '\\x00'";
    client.batch_execute(damage).await.unwrap();
    place.run_unlocked(&[&COMMAND[..], &["--quarantine", "--yes"]].concat()).await.expect(0);
    bot.save_inbound_group_sessions(vec![fixture.inbound.clone()], None).await.unwrap();
    let put_back = [&COMMAND[..], &["--put-back", "--yes", "--json"]].concat();
    let back = place.run(&put_back).await.expect(0).json();
    assert_eq!((&back["rows"], &back["superseded"]), (&0.into(), &1.into()));
    place.run_unlocked(&COMMAND).await.expect(0);
    assert!(bot.get_user_identity(own_user()).await.is_ok());
}

/// An older ratchet must not be used again.
#[tokio::test]
async fn of_several_versions_of_a_row_the_newest_is_put_back() {
    let place = Place::new();
    let (bot, _) = place.filled("bot").await;
    let client = place.client().await;
    for version in ["00", "01", "02"] {
        bot.set_custom_value(CUSTOM_KEY, version.into()).await.unwrap();
        let damage = format!("UPDATE matrix_sdk.custom_values SET data = '\\x{version}'");
        client.batch_execute(&damage).await.unwrap();
        place.run_unlocked(&[&COMMAND[..], &["--quarantine", "--yes"]].concat()).await.expect(0);
    }
    let put_back = [&COMMAND[..], &["--put-back", "--yes", "--json"]].concat();
    let back = place.run(&put_back).await.expect(0).json();
    assert_eq!((&back["rows"], &back["superseded"]), (&1.into(), &2.into()));
    let newest = "SELECT count(*) FROM matrix_sdk.custom_values WHERE data = '\\x02'";
    assert_eq!(place.number(newest).await, 1);
}

#[tokio::test]
async fn a_wrong_or_missing_secret_is_an_error_of_its_own() {
    let place = Place::new();
    drop(place.open("bot").await);
    let missing = place.run(&COMMAND).await.expect(1);
    assert!(missing.err.contains("STORE_PASSPHRASE_FILE"), "{missing:?}");
    let mut command = place.command(&COMMAND);
    command.env("STORE_PASSPHRASE", "guess");
    let wrong = place.run_command(command).await.expect(1);
    assert!(wrong.err.contains("wrong passphrase") && !wrong.err.contains("guess"), "{wrong:?}");
    let missing = place.run(&["verify"]).await.expect(1);
    assert!(missing.err.contains("no account is named"), "{missing:?}");
}

/// Of the account, as they are stored.
async fn rows(place: &Place) -> Vec<String> {
    let client = place.client().await;
    let mut rows = Vec::new();
    for name in WITH_VALUES {
        let sql = format!("SELECT to_jsonb(t)::text FROM matrix_sdk.{name} t ORDER BY 1");
        let found = client.query(&sql, &[]).await.unwrap();
        rows.extend(found.iter().map(|row| row.get::<_, String>(0)));
    }
    rows
}

#[tokio::test]
async fn more_corrupt_rows_than_a_page_are_set_aside_and_put_back() {
    let place = Place::new();
    place.open("bot").await.close().await.unwrap();
    let rows = "INSERT INTO matrix_sdk.custom_values (account_id, key, data)
                SELECT a.id, sha256(n::text::bytea), '\\x00'
                FROM matrix_sdk.accounts a, generate_series(1, 2500) n";
    place.client().await.batch_execute(rows).await.unwrap();
    let aside = ["verify", "--account", "bot", "--quarantine", "--yes"];
    let verified = place.run_unlocked(&aside).await.expect(0);
    assert!(verified.out.contains("2500"), "{}", verified.out);
    let left = "SELECT count(*) FROM matrix_sdk.custom_values";
    assert_eq!(place.number(left).await, 0);
    let back = place.run(&["verify", "--account", "bot", "--put-back", "--yes"]).await.expect(0);
    assert_eq!(back.out, "2500 rows put back\n");
    assert_eq!(place.number(left).await, 2500);
}
