//! Tests on a real PostgreSQL: a sync's keys, events and position are stored atomically.

use std::{
    env,
    process::{Command, Stdio},
    sync::Arc,
};

use clap::Parser;
use matrix_sdk_crypto::{
    EncryptionSettings, OlmMachine, RoomEventDecryptionResult,
    types::{events::room::encrypted::EncryptedEvent, requests::AnyOutgoingRequest},
};
use matrix_sdk_postgres::{PostgresStoreConfig, deadpool_postgres::Pool, testing};
use ruma::{
    DeviceId, OwnedRoomId, RoomId, UserId,
    api::client::keys::{claim_keys, get_keys, upload_keys},
    device_id,
    serde::Raw,
    user_id,
};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    config::{Args, Config},
    crypto::{Crypto, Decrypted},
    devices::Devices,
    homeserver::Homeserver,
    http_client,
    inbox::{Inbox, migrate},
    keys::Keys,
    responses::{ParseResponse, RawJson},
    run::Wake,
    webhook::Webhooks,
};

const SENDERS: usize = 3;
const CHILD: &str = "WEBHOOK_BRIDGE_TEST_CHILD";

fn bot() -> (&'static UserId, &'static DeviceId) {
    (user_id!("@bot:example.org"), device_id!("BOT"))
}

/// All but one of these events are claims of the inviter's server.
#[test]
fn an_invitation_that_names_several_inviters_has_none() {
    let from = |room: &str, invited: &str, inviter: &str| Invitation {
        room_id: room.to_owned(),
        invited: invited.to_owned(),
        inviter: inviter.to_owned(),
    };
    let invitations = vec![
        from("!a:x", "@bot:example.org", "@alice:x"),
        from("!a:x", "@bot:example.org", "@mallory:x"),
        from("!a:x", "@bot:example.org", "@alice:x"),
        from("!b:x", "@bot:example.org", "@alice:x"),
        from("!b:x", "@bot:example.org", "@alice:x"),
        from("!b:x", "@carol:x", "@mallory:x"),
    ];
    let sync = Sync { invitations, ..Sync::default() };
    assert_eq!(own_invitations(&sync, bot().0), [from("!b:x", "@bot:example.org", "@alice:x")]);
}

/// Open the bridge's store, taking it over. The homeserver's address is unreachable.
async fn open(url: &str) -> (Config, Keys, Pool) {
    let arguments = [
        "webhook_bridge",
        "--homeserver=http://127.0.0.1:1",
        "--user=@bot:example.org",
        "--webhook-url=http://127.0.0.1:1",
        "--takeover=immediate",
        "--embedded-postgres",
        "--plain",
    ];
    let config = Config::try_from(Args::try_parse_from(arguments).unwrap()).unwrap();
    let settings = PostgresStoreConfig::new(url, &config.store_account);
    let (keys, pool) = Keys::open(&config, settings, async |_, _| Ok(())).await.unwrap();
    migrate(&pool).await.unwrap();
    (config, keys, pool)
}

/// A run as the engine builds it, with a new machine.
async fn run_on((config, keys, pool): &(Config, Keys, Pool)) -> Run {
    let http = http_client::build(config).unwrap();
    let homeserver = Arc::new(Homeserver::new(http.clone(), config.homeserver.clone()));
    let machine = keys.machine(bot().0, bot().1).await.unwrap();
    Run {
        crypto: Crypto::new(machine, keys.clone()),
        homeserver,
        inbox: Inbox::new(pool.clone(), &config.store_account),
        webhooks: Webhooks::new(&http, config).unwrap(),
        sealer: None,
        metrics: Arc::default(),
        stop: CancellationToken::new(),
        wake: Wake::default(),
        synced: CancellationToken::new(),
        devices: Devices::default(),
        published_device: None,
        config: Arc::new(config.clone()),
    }
}

/// A sync for the bridge whose keys are in the database: the room keys of `SENDERS` senders, each with
/// an encrypted message in a room.
async fn first_contact(keys: &Keys) -> Value {
    let machine = keys.machine(bot().0, bot().1).await.unwrap();
    let requests = machine.outgoing_requests().await.unwrap();
    let upload = requests.iter().find_map(|request| match request.request() {
        AnyOutgoingRequest::KeysUpload(upload) => Some((request.request_id(), upload.clone())),
        _ => None,
    });
    let (id, mut upload) = upload.unwrap();
    let response =
        upload_keys::v3::Response::new([("signed_curve25519".into(), 50_u8.into())].into());
    machine.mark_request_as_sent(id, &response).await.unwrap();

    let (mut to_device, mut rooms) = (Vec::new(), serde_json::Map::new());
    for number in 0..SENDERS {
        let user = UserId::parse(format!("@sender{number}:example.org")).unwrap();
        let room = RoomId::parse(format!("!room{number}:example.org")).unwrap();
        let sender = OlmMachine::new(&user, device_id!("SENDER")).await;
        sender.update_tracked_users([bot().0]).await.unwrap();
        let query = sender
            .outgoing_requests()
            .await
            .unwrap()
            .into_iter()
            .find(|request| matches!(request.request(), AnyOutgoingRequest::KeysQuery(_)));
        let mut response = get_keys::v3::Response::new();
        let device_keys = upload.device_keys.clone().unwrap();
        response.device_keys =
            [(bot().0.to_owned(), [(bot().1.to_owned(), device_keys)].into())].into();
        sender.mark_request_as_sent(query.unwrap().request_id(), &response).await.unwrap();
        let (id, _) = sender.get_missing_sessions([bot().0].into_iter()).await.unwrap().unwrap();
        let key = [upload.one_time_keys.pop_first().unwrap()].into();
        let claimed = [(bot().0.to_owned(), [(bot().1.to_owned(), key)].into())].into();
        let response = claim_keys::v3::Response::new(claimed);
        sender.mark_request_as_sent(&id, &response).await.unwrap();
        let settings = EncryptionSettings::default();
        let shared = sender.share_room_key(&room, [bot().0].into_iter(), settings).await.unwrap();
        for request in shared {
            let content = request.messages.values().next().unwrap().values().next().unwrap();
            to_device.push(json!({"sender": user, "type": request.event_type, "content": content}));
        }
        let text = serde_json::from_value(json!({"msgtype": "m.text", "body": "hello"})).unwrap();
        let text = sender.encrypt_room_event_raw(&room, "m.room.message", &text).await.unwrap();
        let event = json!({"event_id": format!("$event{number}"), "sender": user,
            "type": "m.room.encrypted", "origin_server_ts": 1, "content": text.content});
        rooms.insert(room.to_string(), json!({"timeline": {"events": [event]}}));
    }
    json!({"next_batch": "s2", "to_device": {"events": to_device}, "rooms": {"join": rooms},
        "device_one_time_keys_count": {"signed_curve25519": 50}})
}

fn parse(sync: &Value) -> Sync {
    let text = sync.to_string();
    let body = RawJson::parse(&text).unwrap();
    Sync::read(body, &body.fields().unwrap()).unwrap()
}

fn s1() -> Position {
    Position::At("s1".to_owned())
}

/// The number of Olm sessions, room keys, events and positions.
async fn stored(pool: &Pool) -> [i64; 4] {
    let tables = [
        "matrix_sdk.olm_sessions",
        "matrix_sdk.megolm_inbound_sessions",
        "webhook_bridge.events",
        "webhook_bridge.sync_positions",
    ];
    let connection = pool.get().await.unwrap();
    let mut counts = [0; 4];
    for (table, count) in tables.iter().zip(&mut counts) {
        let sql = format!("SELECT count(*) FROM {table}");
        *count = connection.query_typed_one(&sql, &[]).await.unwrap().get(0);
    }
    counts
}

const NOTHING: [i64; 4] = [0; 4];
const ALL: [i64; 4] = [SENDERS as i64, SENDERS as i64, SENDERS as i64, 1];

/// Inject a fault: run PL/pgSQL before each insert into one of the bridge's tables.
async fn inject_fault(pool: &Pool, table: &str, event: &str) {
    let sql = format!(
        "CREATE OR REPLACE FUNCTION public.inject_fault() RETURNS trigger LANGUAGE plpgsql
             AS $$ BEGIN {event}; RETURN new; END $$;
         CREATE TRIGGER trap BEFORE INSERT ON webhook_bridge.{table}
             FOR EACH ROW EXECUTE FUNCTION public.inject_fault()"
    );
    pool.get().await.unwrap().batch_execute(&sql).await.unwrap();
}

async fn remove_fault(pool: &Pool, table: &str) {
    let sql = format!("DROP TRIGGER trap ON webhook_bridge.{table}");
    pool.get().await.unwrap().batch_execute(&sql).await.unwrap();
}

/// Process the same sync again with a new machine: every message can be decrypted.
async fn process_again(store: &(Config, Keys, Pool), sync: &Value) {
    let run = run_on(store).await;
    // The pool may still hold broken connections.
    while run.inbox.ping().await.is_err() {}
    assert_eq!(run.inbox.sync_position().await.unwrap(), None);
    assert_eq!(process(&run, &s1(), parse(sync)).await.unwrap(), "s2");
    assert_eq!(stored(&store.2).await, ALL);
    // As if the response to the commit had been lost.
    process(&run, &s1(), parse(sync)).await.unwrap();
    assert_eq!(stored(&store.2).await, ALL);
    assert_eq!(run.inbox.sync_position().await.unwrap().as_deref(), Some("s2"));
    for (room, event) in messages(sync) {
        let Decrypted::Result(result) = run.crypto.decrypt(&event, &room).await.unwrap() else {
            panic!("corrupt key in {room}");
        };
        assert!(matches!(*result, RoomEventDecryptionResult::Decrypted(_)), "{room}");
        let due = run.inbox.due(room.as_str(), 10).await.unwrap();
        assert_eq!(due.len(), 1, "{room}");
    }
}

fn messages(sync: &Value) -> Vec<(OwnedRoomId, Raw<EncryptedEvent>)> {
    let rooms = sync["rooms"]["join"].as_object().unwrap().iter();
    let message = |(room, content): (&String, &Value)| {
        let event = content["timeline"]["events"][0].clone();
        (RoomId::parse(room).unwrap(), serde_json::from_value(event).unwrap())
    };
    rooms.map(message).collect()
}

#[tokio::test]
async fn a_failed_sync_stores_nothing_and_is_processed_again() {
    let failures = ["RAISE 'refused'", "PERFORM pg_terminate_backend(pg_backend_pid())"];
    for failure in failures {
        for table in ["rooms", "events", "sync_positions"] {
            let database = testing::database().unwrap();
            let store = open(&database.url()).await;
            let sync = first_contact(&store.1).await;
            let run = run_on(&store).await;
            inject_fault(&store.2, table, failure).await;
            let failed = process(&run, &s1(), parse(&sync)).await;
            assert!(matches!(failed, Err(BridgeError::Temporary(_))), "{failed:?}");
            assert_eq!(stored(&store.2).await, NOTHING, "{failure} at {table}");
            // The machine holds keys that are not stored: it must not upload any.
            let late = run.crypto.outgoing_requests().await;
            assert!(matches!(late, Err(BridgeError::Temporary(_))), "{late:?}");
            drop(run);
            remove_fault(&store.2, table).await;
            store.1.reopen().await.unwrap();
            process_again(&store, &sync).await;
        }
    }
}

/// `kill -9` while the position is being written, after the keys and the events.
#[tokio::test]
async fn a_process_killed_during_a_sync_stores_nothing() {
    if let Ok(task) = env::var(CHILD) {
        let task: Value = serde_json::from_str(&task).unwrap();
        let run = run_on(&open(task["url"].as_str().unwrap()).await).await;
        process(&run, &s1(), parse(&task["sync"])).await.unwrap();
        return;
    }
    let database = testing::database().unwrap();
    let url = database.url();
    let store = open(&url).await;
    let sync = first_contact(&store.1).await;
    inject_fault(&store.2, "sync_positions", "PERFORM pg_sleep(1)").await;
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "sync::tests::a_process_killed_during_a_sync_stores_nothing"])
        .env(CHILD, json!({"url": url, "sync": sync}).to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let sleeping = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND wait_event = 'PgSleep'";
    let is_sleeping = async || {
        let connection = store.2.get().await.unwrap();
        connection.query_typed_one(sleeping, &[]).await.unwrap().get::<_, i64>(0) > 0
    };
    while !is_sleeping().await {
        assert!(child.try_wait().unwrap().is_none(), "the process ended before it was killed");
        sleep(Duration::from_millis(10)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    while is_sleeping().await {
        sleep(Duration::from_millis(10)).await;
    }

    let store = open(&url).await;
    assert_eq!(stored(&store.2).await, NOTHING);
    remove_fault(&store.2, "sync_positions").await;
    process_again(&store, &sync).await;
}

#[test]
fn a_slow_sync_gets_a_longer_timeout_up_to_a_limit() {
    let limits = std::iter::successors(Some(LONG_POLL), |limit| Some(extended(*limit)));
    let limits: Vec<_> = limits.map(|limit| limit.as_secs()).take(6).collect();
    assert_eq!(limits, [30, 60, 120, 240, 300, 300]);
}
