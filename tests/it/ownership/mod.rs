//! One account, one owner.
mod identity;
mod process;
mod rolled_back;
mod scopes;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use assert_matches::assert_matches;
use matrix_sdk_crypto::{CryptoStoreError, store::CryptoStore};
use matrix_sdk_postgres::{
    Access, Error, OpenStoreError, OwnershipSettings, PostgresCryptoStore, PostgresStoreConfig,
    PostgresStores, Takeover, Timeouts,
    deadpool_postgres::tokio_postgres::{error::SqlState, types::Type},
    testing,
};
use test_support::{
    Mode, connect, eventually, number,
    proxy::{Action, Proxy},
    without_heartbeats,
};

async fn open(config: PostgresStoreConfig) -> Result<PostgresCryptoStore, OpenStoreError> {
    PostgresCryptoStore::open_with_config(&config).await
}

async fn value(store: &PostgresCryptoStore) -> Option<Vec<u8>> {
    store.get_custom_value("key").await.unwrap()
}

async fn set(store: &PostgresCryptoStore, value: &[u8]) -> Result<(), Error> {
    store.set_custom_value("key", value.to_vec()).await
}

#[tokio::test]
async fn the_newest_owner_wins_and_the_former_owners_error_names_it() {
    let database = testing::database().unwrap();
    let url = database.url();
    // Without a heartbeat, which would detect the takeover before the write.
    let named = |label: &str| {
        let label = label.to_owned();
        Mode::Key.config(&url, "bot").access(OwnershipSettings { label, ..without_heartbeats() })
    };
    let first = open(named("blue")).await.unwrap();
    set(&first, b"first").await.unwrap();
    let second = open(named("green")).await.unwrap();
    set(&second, b"second").await.unwrap();

    assert_matches!(set(&first, b"late").await, Err(Error::Superseded { by, since }) => {
        assert!(by.starts_with("green on ") && by.contains("process "), "{by}");
        assert!(since.elapsed().unwrap() < Duration::from_secs(600));
    });
    // Every later call fails too, and reopening does not take the account back.
    assert_matches!(first.get_custom_value("key").await, Err(Error::Superseded { .. }));
    assert_matches!(first.load_account().await, Err(Error::Superseded { .. }));
    let lease = first.try_take_leased_lock(100, "key", "holder").await;
    assert_matches!(lease, Err(Error::Superseded { .. }));
    let within: Result<(), CryptoStoreError> = first.atomically(async { Ok(()) }).await;
    assert_matches!(within, Err(CryptoStoreError::Backend(_)));
    assert_matches!(first.reopen().await, Err(Error::Superseded { .. }));
    first.close().await.unwrap();
    assert_matches!(first.get_custom_value("key").await, Err(Error::Superseded { .. }));
    assert_matches!(first.reopen().await, Err(Error::Superseded { .. }));

    assert_eq!(value(&second).await.unwrap(), b"second");
    set(&second, b"third").await.unwrap();
}

/// The guard waits for a takeover that is being committed, and then checks its result.
#[tokio::test]
async fn a_write_that_waited_for_a_takeover_is_refused() {
    let database = testing::database().unwrap();
    let url = database.url();
    let config = Mode::Plain.config(&url, "bot").access(without_heartbeats());
    let store = open(config).await.unwrap();
    set(&store, b"before").await.unwrap();
    let (mut other, watcher) = (connect(&url).await, connect(&url).await);
    let takeover = other.transaction().await.unwrap();
    let sql = "UPDATE matrix_sdk.account_owners SET token = '\\x00', name = 'other'";
    takeover.batch_execute(sql).await.unwrap();
    let write = tokio::spawn({
        let store = store.clone();
        async move { set(&store, b"after").await }
    });
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while number(&watcher, waiting).await == 0 {
        assert!(!write.is_finished(), "the guard did not wait");
    }
    takeover.commit().await.unwrap();
    assert_matches!(write.await.unwrap(), Err(Error::Superseded { by, .. }) if by == "other");
    let stored = "SELECT count(*) FROM matrix_sdk.custom_values WHERE data = 'after'";
    assert_eq!(number(&watcher, stored).await, 0);
}

#[tokio::test]
async fn a_lease_is_fenced_as_well() {
    let database = testing::database().unwrap();
    let url = database.url();
    let first = Mode::Plain.open(&url, "bot").await;
    let _second = Mode::Plain.open(&url, "bot").await;
    let lease = first.try_take_leased_lock(60_000, "key", "holder").await;
    assert_matches!(lease, Err(Error::Superseded { .. }));
    let client = connect(&url).await;
    assert_eq!(number(&client, "SELECT count(*) FROM matrix_sdk.lease_locks").await, 0);
}

/// Also for an owner that was closed or had failed before the takeover.
#[tokio::test]
async fn reopening_does_not_take_the_account_back() {
    let database = testing::database().unwrap();
    let url = database.url();
    let first = Mode::Plain.open(&url, "bot").await;
    first.close().await.unwrap();
    first.reopen().await.unwrap();
    set(&first, b"first").await.unwrap();
    first.close().await.unwrap();
    let second = Mode::Plain.open(&url, "bot").await;
    second.close().await.unwrap();
    assert_matches!(first.reopen().await, Err(Error::Superseded { .. }));
    assert_matches!(first.get_custom_value("key").await, Err(Error::Superseded { .. }));
    second.reopen().await.unwrap();
    set(&second, b"second").await.unwrap();
}

#[tokio::test]
async fn an_idle_owner_detects_a_takeover_by_its_heartbeat() {
    let database = testing::database().unwrap();
    let config = Mode::Plain.config(&database.url(), "bot");
    let config = config.access(OwnershipSettings {
        heartbeat_interval: Duration::from_millis(20),
        ..Default::default()
    });
    let first = open(config.clone()).await.unwrap();
    let _second = open(config).await.unwrap();
    // Reads do not check the ownership; only the heartbeat does.
    eventually("the heartbeat detects the takeover", async || {
        first.get_custom_value("key").await.is_err()
    })
    .await;
    assert_matches!(first.get_custom_value("key").await, Err(Error::Superseded { .. }));
}

#[tokio::test]
async fn refuse_if_alive_fails_while_the_owner_is_alive() {
    let database = testing::database().unwrap();
    let config = Mode::Plain.config(&database.url(), "bot");
    let refuse_if_alive = config.access(OwnershipSettings {
        takeover: Takeover::RefuseIfAlive,
        label: "blue".to_owned(),
        ..Default::default()
    });
    let first = open(refuse_if_alive.clone()).await.unwrap();
    assert_matches!(open(refuse_if_alive.clone()).await, Err(OpenStoreError::OwnerAlive { account, owner, .. }) => {
        assert_eq!(account, "bot");
        assert!(owner.starts_with("blue on "), "{owner}");
    });
    set(&first, b"undisturbed").await.unwrap();
    first.close().await.unwrap();
    let second = open(refuse_if_alive.clone()).await.unwrap();
    // A dropped store releases the account in the background.
    drop(second);
    eventually("the account is free", async || open(refuse_if_alive.clone()).await.is_ok()).await;
}

/// The owner is read with the account's row, and another process takes the account before the claim.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_came_between_the_reading_and_the_claim_is_seen() {
    for takeover in [Takeover::RefuseIfAlive, Takeover::Immediate] {
        let database = testing::database().unwrap();
        let url = database.url();
        open(Mode::Key.config(&url, "bot")).await.unwrap().close().await.unwrap();
        let (proxy, through) = Proxy::before(&database);
        let claims = Arc::new(AtomicUsize::new(0));
        let counted = claims.clone();
        proxy.rule(move |message| {
            let is_claim = message.body.windows(6).any(|bytes| bytes == b"claim(");
            match message.tag == b'P' && is_claim && counted.fetch_add(1, SeqCst) == 0 {
                true => Action::Hold,
                false => Action::Pass,
            }
        });
        let config = Mode::Key
            .config(&through, "bot")
            .access(OwnershipSettings { takeover, ..Default::default() });
        let opening = tokio::spawn(open(config));
        eventually("the claim is held", async || claims.load(SeqCst) == 1).await;
        let other = open(Mode::Key.config(&url, "bot")).await.unwrap();
        proxy.release();
        let opened = opening.await.unwrap();
        if takeover == Takeover::RefuseIfAlive {
            assert_matches!(opened, Err(OpenStoreError::OwnerAlive { .. }));
            set(&other, b"undisturbed").await.unwrap();
        } else {
            set(&opened.unwrap(), b"the newest owner's").await.unwrap();
            assert_matches!(set(&other, b"late").await, Err(Error::Superseded { .. }));
        }
    }
}

#[tokio::test]
async fn a_standby_waits_until_the_owner_ends_or_its_heartbeat_does() {
    let database = testing::database().unwrap();
    let url = database.url();
    let config = Mode::Plain.config(&url, "bot");
    let waiting = config.clone().access(OwnershipSettings {
        takeover: Takeover::WaitUntilFree(Duration::from_secs(60)),
        ..Default::default()
    });
    let first = open(config.clone()).await.unwrap();
    let mut standby = tokio::spawn(open(waiting.clone()));
    let early = tokio::time::timeout(Duration::from_millis(700), &mut standby).await;
    assert!(early.is_err(), "the standby did not wait");
    set(&first, b"still ours").await.unwrap();
    first.close().await.unwrap();
    let second = standby.await.unwrap().unwrap();
    set(&second, b"the standby's").await.unwrap();

    let impatient = config.access(OwnershipSettings {
        takeover: Takeover::WaitUntilFree(Duration::from_millis(10)),
        ..Default::default()
    });
    assert_matches!(open(impatient).await, Err(OpenStoreError::OwnerAlive { .. }));

    // As after a kill -9: the handle's row stays, the heartbeat expires.
    let client = connect(&url).await;
    client
        .batch_execute(
            "INSERT INTO matrix_sdk.account_handles
                 SELECT account_id, 'dead', 'gone' FROM matrix_sdk.account_handles;
             DELETE FROM matrix_sdk.account_handles WHERE id <> 'dead';
             INSERT INTO matrix_sdk.heartbeats VALUES ('gone', clock_timestamp() + interval '1 s')",
        )
        .await
        .unwrap();
    open(waiting).await.unwrap();
    assert_matches!(set(&second, b"late").await, Err(Error::Superseded { .. }));
}

#[tokio::test]
async fn a_read_only_store_reads_next_to_the_owner_and_writes_nothing() {
    let database = testing::database().unwrap();
    let url = database.url();
    let read_only_config = Mode::Key.config(&url, "bot").access(Access::ReadOnly);
    let missing = open(read_only_config.clone()).await;
    assert_matches!(missing, Err(OpenStoreError::MigrationsPending { found: 0, .. }));
    let owner = Mode::Key.open(&url, "bot").await;
    let other = Mode::Key.config(&url, "other").access(Access::ReadOnly);
    assert_matches!(open(other).await, Err(OpenStoreError::AccountNotFound { account }) => {
        assert_eq!(account, "other");
    });

    set(&owner, b"value").await.unwrap();
    let read_only = open(read_only_config).await.unwrap();
    assert_eq!(value(&read_only).await.unwrap(), b"value");
    assert_eq!(read_only.commit_count().await.unwrap(), 1);
    assert_matches!(set(&read_only, b"other").await, Err(Error::ReadOnly));
    let lease = read_only.try_take_leased_lock(100, "key", "holder").await;
    assert_matches!(lease, Err(Error::ReadOnly));
    set(&owner, b"owned").await.unwrap();
    assert_eq!(value(&read_only).await.unwrap(), b"owned");
    read_only.close().await.unwrap();
    set(&owner, b"still").await.unwrap();
    let client = connect(&url).await;
    assert_eq!(number(&client, "SELECT count(*) FROM matrix_sdk.account_handles").await, 1);
}

#[tokio::test]
async fn many_accounts_of_a_process_share_one_heartbeat() {
    let database = testing::database().unwrap();
    let url = database.url();
    let mut stores = Vec::new();
    for account in 0..20 {
        stores.push(Mode::Plain.open(&url, &format!("bot {account}")).await);
    }
    let client = connect(&url).await;
    assert_eq!(number(&client, "SELECT count(*) FROM matrix_sdk.heartbeats").await, 1);
    assert_eq!(number(&client, "SELECT count(*) FROM matrix_sdk.account_handles").await, 20);
}

/// No write takes effect outside of a guarded transaction, because the transaction marker is missing.
#[tokio::test]
async fn writes_are_refused_without_the_guard() {
    let database = testing::database().unwrap();
    let url = database.url();
    let fixture = test_support::fixture::Fixture::new().await;
    let store = Mode::Plain.open(&url, "bot").await;
    fixture.fill(&store).await;
    let id = {
        let client = connect(&url).await;
        number(&client, "SELECT id FROM matrix_sdk.accounts").await
    };
    let mut writes = 0;
    for (name, text, types) in PostgresStores::statement_texts("matrix_sdk").unwrap() {
        if !text.contains("matrix_sdk.tx") {
            continue;
        }
        // A setting that was set once in a session is empty afterwards instead of absent.
        let client = connect(&url).await;
        let statement = client.prepare_typed(&text, &types).await.unwrap();
        let bytes: Vec<Option<&[u8]>> = vec![Some(b"x")];
        let (shorts, ints, bools) = (vec![1_i16], vec![1_i32], vec![true]);
        let params = types.iter().skip(1).map(|ty| match *ty {
            Type::BYTEA_ARRAY => &bytes as &(dyn tokio_postgres::types::ToSql + Sync),
            Type::INT2_ARRAY => &shorts,
            Type::INT4_ARRAY => &ints,
            Type::BOOL_ARRAY => &bools,
            _ => panic!("{name} takes a {ty}"),
        });
        let params: Vec<_> = std::iter::once(&id as _).chain(params).collect();
        let refused = client.execute(&statement, &params).await.unwrap_err();
        assert_eq!(refused.code(), Some(&SqlState::UNDEFINED_OBJECT), "{name}: {refused}");

        let set = "SELECT set_config('matrix_sdk.tx', 'of another transaction', true)";
        client.batch_execute(set).await.unwrap();
        assert_eq!(client.execute(&statement, &params).await.unwrap(), 0, "{name}");
        writes += 1;
    }
    assert!(writes >= 20, "only {writes} writes are guarded");
}

/// The application's rows are part of the transaction.
#[tokio::test]
async fn the_applications_rows_are_committed_with_the_keys_or_not_at_all() {
    let database = testing::database().unwrap();
    let url = database.url();
    let client = connect(&url).await;
    client.batch_execute("CREATE TABLE outbox (body text)").await.unwrap();
    let store = Mode::Key.open(&url, "bot").await;
    assert_matches!(store.transaction().await, Err(Error::NotInAtomically));

    let insert = "INSERT INTO outbox VALUES ($1)";
    let save = async |body: &str| {
        set(&store, body.as_bytes()).await?;
        let transaction = store.transaction().await?;
        transaction.query(insert, &[(&body, Type::TEXT)]).await?;
        let rows = transaction.query("SELECT count(*) FROM outbox", &[]).await?;
        Ok::<i64, CryptoStoreError>(rows[0].get(0))
    };
    assert_eq!(store.atomically(save("first")).await.unwrap(), 1);
    assert_eq!(number(&client, "SELECT count(*) FROM outbox").await, 1);

    let failed: Result<(), CryptoStoreError> = store
        .atomically(async {
            assert_eq!(save("second").await?, 2);
            Err(CryptoStoreError::AccountUnset)
        })
        .await;
    assert_matches!(failed, Err(CryptoStoreError::AccountUnset));
    assert_eq!(number(&client, "SELECT count(*) FROM outbox").await, 1);
    store.reopen().await.unwrap();
    assert_eq!(value(&store).await.unwrap(), b"first");

    // Ending the transaction ends the guard's marker: later writes fail.
    let ended: Result<(), CryptoStoreError> = store
        .atomically(async {
            store.transaction().await?.query("COMMIT", &[]).await?;
            set(&store, b"third").await?;
            Ok(())
        })
        .await;
    assert!(ended.is_err());
    store.reopen().await.unwrap();
    assert_eq!(value(&store).await.unwrap(), b"first");
}

/// The server ends an idle transaction, so the store sends keep-alives while the future computes.
#[tokio::test]
async fn a_transaction_that_is_open_for_long_is_kept_alive() {
    let database = testing::database().unwrap();
    let config = Mode::Key.config(&database.url(), "bot");
    let store =
        open(config.timeouts(Timeouts {
            transaction_idle: Duration::from_millis(150),
            ..Default::default()
        }))
        .await
        .unwrap();
    let long = async {
        set(&store, b"value").await?;
        let open = store.transaction().await?;
        open.query("SELECT 1", &[]).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        open.query("SELECT 1", &[]).await?;
        Ok::<_, CryptoStoreError>(())
    };
    store.atomically(long).await.unwrap();
    assert_eq!(value(&store).await.unwrap(), b"value");
}
