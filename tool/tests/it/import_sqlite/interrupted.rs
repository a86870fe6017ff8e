//! Imports that end in their middle, and accounts that are not empty.

use std::{process::Stdio, time::Duration};

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::testing::PostgresServer;

use super::files::{Folder, Mode, filled, import};
use crate::support::{Place, Ran};

async fn imports(place: &Place, folder: &Folder) -> Ran {
    place.run_command(import(place, folder, Mode::Passphrase, "bot")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_not_empty_is_left_alone() {
    let (place, (folder, _)) = (Place::new(), filled(Mode::Passphrase).await);
    imports(&place, &folder).await.expect(0);
    // Again, as after an interruption behind the last transaction; and one of another device.
    let refused = imports(&place, &folder).await.expect(4);
    assert!(refused.err.contains("already is the device ALICESDEVICE of "), "{refused:?}");
    assert!(refused.err.contains("The old bot must not start again"), "{refused:?}");
    let (another, _) = filled(Mode::Passphrase).await;
    let refused = imports(&place, &another).await.expect(4);
    assert!(refused.err.contains("is not empty, it holds the device ALICESDEVICE"), "{refused:?}");

    let store = place.open("other").await;
    store.set_custom_value("mine", b"mine".to_vec()).await.unwrap();
    let into = |account: &str| import(&place, &folder, Mode::Passphrase, account);
    let refused = place.run_command(into("other")).await.expect(4);
    assert!(refused.err.contains("it holds 1 rows"), "{refused:?}");
    // An empty one may be in use.
    let empty = place.open("empty").await;
    let refused = place.run_command(into("empty")).await.expect(4);
    assert!(refused.err.contains("matrix-sdk-postgres on "), "{refused:?}");
    empty.close().await.unwrap();
    // A bot that stands still, as in a paused machine, stays the owner.
    let stand_still = "CREATE FUNCTION stand_still() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                           NEW.alive_until := clock_timestamp() - interval '1 hour';
                           RETURN NEW;
                       END $$;
                       CREATE TRIGGER stand_still BEFORE UPDATE ON matrix_sdk.heartbeats
                           FOR EACH ROW EXECUTE FUNCTION stand_still();
                       UPDATE matrix_sdk.heartbeats SET alive_until = alive_until";
    place.client().await.batch_execute(stand_still).await.unwrap();
    let refused = place.run_command(into("other")).await.expect(4);
    assert!(refused.err.contains("it holds 1 rows"), "{refused:?}");
    store.set_custom_value("mine", b"still mine".to_vec()).await.unwrap();
}

/// Programs of that schema may be running.
#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_there_is_not_migrated_by_the_way() {
    let (place, (folder, _)) = (Place::new(), filled(Mode::Passphrase).await);
    drop(place.open("other").await);
    let older =
        "DELETE FROM matrix_sdk.schema_migrations m WHERE part = 'crypto_store' AND version =
                     (SELECT max(version) FROM matrix_sdk.schema_migrations WHERE part = m.part)";
    place.client().await.batch_execute(older).await.unwrap();
    let failed = imports(&place, &folder).await.expect(1);
    assert!(failed.err.contains("run matrix-postgres migrate"), "{failed:?}");
}

/// A save that fails: as on a full disk, or when a right is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_import_is_no_device_and_goes_on() {
    let (place, (folder, fixture)) = (Place::new(), filled(Mode::Passphrase).await);
    drop(place.open("other").await);
    let client = place.client().await;
    for table in ["custom_values", "devices", "megolm_inbound_sessions", "withheld_sessions"] {
        let sql = format!(
            "ALTER TABLE matrix_sdk.{table} ADD CONSTRAINT no_room CHECK (account_id < 0) NOT VALID"
        );
        client.batch_execute(&sql).await.unwrap();
        let before = folder.state();
        let failed = imports(&place, &folder).await.expect(1);
        assert!(failed.err.contains("23514"), "{failed:?}");
        assert_eq!(folder.state(), before);
        let sql = format!("ALTER TABLE matrix_sdk.{table} DROP CONSTRAINT no_room");
        client.batch_execute(&sql).await.unwrap();
        let store = place.open("bot").await;
        assert!(store.load_account().await.unwrap().is_none(), "{table}");
        store.close().await.unwrap();
    }
    // Another device's file does not go on with it.
    let (other, _) = filled(Mode::Passphrase).await;
    let refused = imports(&place, &other).await.expect(4);
    assert!(refused.err.contains("an import of another device"), "{refused:?}");

    let ran = imports(&place, &folder).await.expect(0);
    assert!(ran.out.contains("read back and is the same"), "{}", ran.out);
    let account = place.open("bot").await.load_account().await.unwrap().unwrap();
    assert_eq!(account.identity_keys(), fixture.account.identity_keys());
}

/// A bot may use the account from its last transaction on: an import that goes on would put old ratchets back.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_usable_is_marked_no_more() {
    let (place, (folder, _)) = (Place::new(), filled(Mode::Passphrase).await);
    drop(place.open("other").await);
    let client = place.client().await;
    let sql = "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
                   $$ BEGIN RAISE EXCEPTION 'no'; END $$;
               CREATE TRIGGER fail BEFORE DELETE ON matrix_sdk.custom_values
                   FOR EACH ROW EXECUTE FUNCTION fail()";
    client.batch_execute(sql).await.unwrap();
    imports(&place, &folder).await.expect(1);
    let store = place.open("bot").await;
    assert!(store.load_account().await.unwrap().is_none());
    store.close().await.unwrap();
    client.batch_execute("DROP TRIGGER fail ON matrix_sdk.custom_values").await.unwrap();
    imports(&place, &folder).await.expect(0);
    let left = "SELECT count(*) FROM matrix_sdk.custom_values";
    assert_eq!(place.number(left).await, 0);
}

/// Starts an import that waits in its middle, for as long as the client is there.
async fn held_up(place: &Place, folder: &Folder) -> (std::process::Child, impl Sized) {
    let client = place.client().await;
    let sql = "CREATE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                   PERFORM pg_advisory_xact_lock(42);
                   RETURN NULL;
               END $$;
               CREATE TRIGGER hold_up AFTER INSERT ON matrix_sdk.megolm_inbound_sessions
                   EXECUTE FUNCTION hold_up();
               SELECT pg_advisory_lock(42)";
    client.batch_execute(sql).await.unwrap();
    let mut command = import(place, folder, Mode::Passphrase, "bot");
    let running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let waiting = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                   WHERE d.datname = current_database() AND locktype = 'advisory' AND NOT granted";
    while place.number(waiting).await == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (running, client)
}

async fn ended(running: std::process::Child) -> Ran {
    let output = tokio::task::spawn_blocking(|| running.wait_with_output().unwrap());
    Ran::of(output.await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_in_the_middle() {
    let (place, (folder, _)) = (Place::new(), filled(Mode::Passphrase).await);
    drop(place.open("other").await);
    let before = folder.state();
    let (running, lock) = held_up(&place, &folder).await;
    let pid = running.id().to_string();
    std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap();
    let ended = ended(running).await.expect(130);
    assert_eq!(ended.err, "error: interrupted: run the same command again to go on\n");
    drop(lock);
    assert_eq!(folder.state(), before);
    imports(&place, &folder).await.expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_goes_in_the_middle() {
    let mut server = PostgresServer::start().unwrap();
    let (place, (folder, _)) =
        (Place { database: server.create_database().unwrap() }, filled(Mode::Passphrase).await);
    drop(place.open("other").await);
    let before = folder.state();
    let (running, lock) = held_up(&place, &folder).await;
    server.kill();
    let gone = ended(running).await.expect(5);
    assert!(gone.err.contains("run the same command again, and it goes on"), "{gone:?}");
    assert_eq!(folder.state(), before);
    drop(lock);
    server.restart().unwrap();
    imports(&place, &folder).await.expect(0);
}
