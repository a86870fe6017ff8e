//! Rule 29: the toy store and the crypto store, in one account.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;

use matrix_sdk_crypto::store::CryptoStore;
use tokio::sync::oneshot;
use tokio_postgres::{Client, NoTls};

use super::{TOY_STORE, ToyError, ToyStore};
use crate::{
    Error, OpenStoreError, OwnershipSettings, PostgresCryptoStore, PostgresStoreConfig, Takeover,
    account::{StoreLane, atomically, handle::AccountHandle},
    crypto_store::CRYPTO_STORE,
    testing::{self, TestDatabase},
};

const NAME: [&str; 3] = ["!room", "m.room.name", ""];
const TOPIC: [&str; 3] = ["!room", "m.room.topic", ""];

struct Stores {
    crypto: PostgresCryptoStore,
    toy: ToyStore,
}

async fn open_stores(url: &str) -> Stores {
    open_with(&PostgresStoreConfig::new(url, "bot").key(Some(&[7; 32]))).await
}

async fn open_with(config: &PostgresStoreConfig) -> Stores {
    let account = AccountHandle::open(None, config, vec![&CRYPTO_STORE, &TOY_STORE]).await;
    let account = account.unwrap();
    let crypto = PostgresCryptoStore::of(&account);
    Stores { crypto, toy: ToyStore::of(&account) }
}

impl Stores {
    fn lanes(&self) -> [Arc<StoreLane>; 2] {
        let (crypto, toy) = (self.crypto.handle().operation(), self.toy.0.operation());
        [crypto.unwrap().account(), toy.unwrap().account()]
    }

    /// Runs the future in one transaction over both stores.
    async fn atomically<T>(
        &self,
        future: impl Future<Output = Result<T, ToyError>>,
    ) -> Result<T, ToyError> {
        let [crypto, toy] = self.lanes();
        atomically(&[&toy, &crypto], future, ToyError::from).await
    }

    async fn set_value(&self, value: &str) -> Result<(), Error> {
        self.crypto.set_custom_value("key", value.as_bytes().to_vec()).await
    }

    async fn value(&self) -> Option<Vec<u8>> {
        self.crypto.get_custom_value("key").await.unwrap()
    }

    async fn close(&self) {
        self.crypto.close().await.unwrap();
        self.toy.0.close().await.unwrap();
    }
}

async fn connect(database: &TestDatabase) -> Client {
    let (client, connection) = tokio_postgres::connect(&database.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

const HANDLES: &str = "SELECT count(*) FROM matrix_sdk.account_handles";

#[tokio::test]
async fn two_stores_share_one_account_handle_and_each_counts_in_its_own_lane() {
    let database = testing::database().unwrap();
    let (stores, client) = (open_stores(&database.url()).await, connect(&database).await);
    assert_eq!(number(&client, HANDLES).await, 1);
    stores.set_value("value").await.unwrap();
    for (key, data) in [(NAME, "a"), (TOPIC, "b"), (["!room", "m.room.name", "other"], "c")] {
        stores.toy.set_state(key, data).await.unwrap();
    }
    stores.toy.set_profile("@alice", b"Alice").await.unwrap();
    stores.toy.delete_state(TOPIC).await.unwrap();
    let count = "SELECT commits FROM matrix_sdk.account_lanes WHERE lane = ";
    assert_eq!(number(&client, &format!("{count}'crypto_store'")).await, 1);
    assert_eq!(number(&client, &format!("{count}'toy_store'")).await, 5);
    assert_eq!(stores.crypto.commit_count().await.unwrap(), 6);

    stores.close().await;
    let stores = open_stores(&database.url()).await;
    assert_eq!(stores.value().await.as_deref(), Some(b"value".as_slice()));
    assert_eq!(stores.toy.state(NAME).await.unwrap().as_deref(), Some("a"));
    assert_eq!(stores.toy.state(TOPIC).await.unwrap(), None);
    assert_eq!(stores.toy.profile("@alice").await.unwrap().as_deref(), Some("Alice"));
    assert!(matches!(stores.toy.set_profile("@bob", &[0xff]).await, Err(ToyError::NotText)));
    // Reads return the changed value, with and without the cache.
    stores.toy.set_state(NAME, "d").await.unwrap();
    assert_eq!(stores.toy.state(NAME).await.unwrap().as_deref(), Some("d"));
    let open = number(&client, HANDLES).await;
    stores.crypto.close().await.unwrap();
    assert_eq!(number(&client, HANDLES).await, open, "the account was released too soon");
    stores.toy.0.close().await.unwrap();
    assert_eq!(number(&client, HANDLES).await, 0);

    // Dropping the last store releases the account, too.
    let Stores { crypto, toy } = open_stores(&database.url()).await;
    drop(crypto);
    toy.set_state(NAME, "alone").await.unwrap();
    toy.0.close().await.unwrap();
    assert_eq!(number(&client, HANDLES).await, 0);
}

#[tokio::test]
async fn one_transaction_writes_in_both_stores_or_in_none() {
    let database = testing::database().unwrap();
    let (stores, client) = (open_stores(&database.url()).await, connect(&database).await);
    let saved = stores.atomically(async {
        stores.set_value("together").await?;
        stores.toy.set_state(NAME, "together").await?;
        // Within the scope, the changes of both are visible.
        assert_eq!(stores.value().await.as_deref(), Some(b"together".as_slice()));
        assert_eq!(stores.toy.state(NAME).await?.as_deref(), Some("together"));
        Ok(())
    });
    saved.await.unwrap();
    let transactions =
        "SELECT count(DISTINCT x) FROM (SELECT xmin::text x FROM matrix_sdk.toy_state
        UNION SELECT xmin::text FROM matrix_sdk.custom_values
        UNION SELECT xmin::text FROM matrix_sdk.account_lanes) rows";
    assert_eq!(number(&client, transactions).await, 1);
    assert_eq!(stores.crypto.commit_count().await.unwrap(), 2);

    let failed = stores.atomically(async {
        stores.set_value("half").await?;
        stores.toy.set_state(NAME, "half").await?;
        Err::<(), _>(ToyError::NotText)
    });
    assert!(matches!(failed.await, Err(ToyError::NotText)));
    assert!(matches!(stores.set_value("later").await, Err(Error::ReopenRequired)));
    stores.crypto.reopen().await.unwrap();
    stores.toy.0.reopen().await.unwrap();
    assert_eq!(stores.value().await.as_deref(), Some(b"together".as_slice()));
    assert_eq!(stores.toy.state(NAME).await.unwrap().as_deref(), Some("together"));
    stores.set_value("later").await.unwrap();
    stores.toy.set_state(NAME, "later").await.unwrap();
}

#[tokio::test]
async fn a_stalled_transaction_of_one_store_delays_no_save_of_the_other() {
    let database = testing::database().unwrap();
    let stores = open_stores(&database.url()).await;
    let (latch, released) = oneshot::channel::<()>();
    let (reached, standing) = oneshot::channel::<()>();
    let toy = stores.toy.clone();
    let standing_still = tokio::spawn(async move {
        let lane = toy.0.operation().unwrap().account();
        let future = async {
            toy.set_state(NAME, "slow").await?;
            // Reading a table that the scope has changed sends BEGIN and the save.
            toy.set_profile("@alice", b"Alice").await?;
            assert_eq!(toy.profile("@alice").await?.as_deref(), Some("Alice"));
            let _ = reached.send(());
            let _ = released.await;
            Ok(())
        };
        lane.atomically(future, ToyError::from).await
    });
    standing.await.unwrap();
    // If it waited for the scope, it would never return: the scope ends only after it.
    stores.set_value("fast").await.unwrap();
    assert_eq!(stores.value().await.as_deref(), Some(b"fast".as_slice()));
    latch.send(()).unwrap();
    standing_still.await.unwrap().unwrap();
    assert_eq!(stores.toy.state(NAME).await.unwrap().as_deref(), Some("slow"));
    // Within one store's transaction, saves of another store are refused.
    let [crypto, _] = stores.lanes();
    let foreign = crypto.atomically(async { stores.toy.set_state(NAME, "no").await }, Into::into);
    assert!(matches!(foreign.await, Err(ToyError::Engine(Error::OtherStoreInAtomically))));
}

#[tokio::test]
async fn a_failed_store_is_reopened_while_the_other_continues() {
    let database = testing::database().unwrap();
    let (stores, client) = (open_stores(&database.url()).await, connect(&database).await);
    stores.toy.set_state(NAME, "before").await.unwrap();
    client.batch_execute("ALTER TABLE matrix_sdk.toy_state RENAME TO away").await.unwrap();
    stores.toy.set_state(NAME, "lost").await.unwrap_err();
    client.batch_execute("ALTER TABLE matrix_sdk.away RENAME TO toy_state").await.unwrap();
    let refused = stores.toy.set_state(NAME, "refused").await;
    assert!(matches!(refused, Err(ToyError::Engine(Error::ReopenRequired))));
    stores.set_value("goes on").await.unwrap();
    let token = "SELECT encode(token, 'hex') FROM matrix_sdk.account_owners";
    let token = async || client.query_one(token, &[]).await.unwrap().get::<_, String>(0);
    let before = token().await;
    stores.toy.0.reopen().await.unwrap();
    assert_eq!(token().await, before, "the account was taken over for one of its stores");
    stores.toy.set_state(NAME, "after").await.unwrap();
    stores.set_value("still").await.unwrap();
    assert_eq!(stores.toy.state(NAME).await.unwrap().as_deref(), Some("after"));
}

/// The server ends the connection of the first commit in the toy store's table.
const END_FIRST_COMMIT: &str = "
CREATE SEQUENCE public.commits;
CREATE FUNCTION public.end_first() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF nextval('public.commits') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
    RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER end_first AFTER INSERT OR UPDATE ON matrix_sdk.toy_state
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.end_first()";

#[tokio::test]
async fn an_unknown_outcome_in_one_lane_is_resolved_during_an_open_transaction_of_the_other() {
    let database = testing::database().unwrap();
    let (stores, client) = (open_stores(&database.url()).await, connect(&database).await);
    client.batch_execute(END_FIRST_COMMIT).await.unwrap();
    let [crypto, _] = stores.lanes();
    let (latch, released) = oneshot::channel::<()>();
    let (reached, open) = oneshot::channel::<()>();
    let holding = tokio::spawn({
        let (crypto, store) = (crypto.clone(), stores.crypto.clone());
        async move {
            let future = async {
                store.set_custom_value("key", b"held".to_vec()).await?;
                store.get_custom_value("key").await?;
                let _ = reached.send(());
                let _ = released.await;
                Ok::<_, Error>(())
            };
            crypto.atomically(future, Error::from).await
        }
    });
    open.await.unwrap();
    stores.toy.set_state(NAME, "twice sent").await.unwrap();
    assert_eq!(number(&client, "SELECT last_value FROM public.commits").await, 2);
    latch.send(()).unwrap();
    holding.await.unwrap().unwrap();
    assert_eq!(stores.value().await.as_deref(), Some(b"held".as_slice()));
    assert_eq!(stores.toy.state(NAME).await.unwrap().as_deref(), Some("twice sent"));
    let commits = "SELECT commits FROM matrix_sdk.account_lanes WHERE lane = 'toy_store'";
    assert_eq!(number(&client, commits).await, 1);
}

#[tokio::test]
async fn a_takeover_ends_all_stores_of_the_former_owner() {
    let database = testing::database().unwrap();
    let former = open_stores(&database.url()).await;
    former.set_value("former").await.unwrap();
    let newer = open_stores(&database.url()).await;
    newer.toy.set_state(NAME, "newer").await.unwrap();
    assert!(matches!(former.set_value("late").await, Err(Error::Superseded { .. })));
    let late = former.toy.set_state(NAME, "late").await;
    assert!(matches!(late, Err(ToyError::Engine(Error::Superseded { .. }))));
    assert!(matches!(former.toy.0.reopen().await, Err(Error::Superseded { .. })));
    assert_eq!(newer.toy.state(NAME).await.unwrap().as_deref(), Some("newer"));
    newer.set_value("newer").await.unwrap();
}

#[tokio::test]
async fn leases_of_two_stores_have_nothing_in_common() {
    let database = testing::database().unwrap();
    let stores = open_stores(&database.url()).await;
    for (lane, holder) in stores.lanes().iter().zip(["one", "other"]) {
        assert_eq!(lane.take_lease(60_000, "lock", holder).await.unwrap(), Some(1));
    }
    let [crypto, _] = stores.lanes();
    assert_eq!(crypto.take_lease(60_000, "lock", "other").await.unwrap(), None);
}

#[tokio::test]
async fn a_store_that_is_dropped_keeps_the_account_until_its_saves_are_written() {
    let database = testing::database().unwrap();
    let (stores, mut client) = (open_stores(&database.url()).await, connect(&database).await);
    let watcher = connect(&database).await;
    let locking = client.transaction().await.unwrap();
    locking.batch_execute("LOCK TABLE matrix_sdk.custom_values").await.unwrap();
    for number in 0..20 {
        let save = stores.crypto.set_custom_value("key", vec![number]);
        assert!(save.now_or_never().is_none(), "the save was not delayed");
    }
    let Stores { crypto, toy } = stores;
    drop(crypto);
    toy.0.close().await.unwrap();
    assert_eq!(
        number(&watcher, HANDLES).await,
        1,
        "the account was released before its writes had ended"
    );
    locking.commit().await.unwrap();
    while number(&watcher, HANDLES).await > 0 {
        tokio::task::yield_now().await;
    }
    let last = "SELECT count(*) FROM matrix_sdk.custom_values";
    assert_eq!(number(&watcher, last).await, 1);
    let read_only = open_stores(&database.url()).await;
    assert_eq!(read_only.value().await, Some(vec![19]));
}

#[test]
fn stores_are_reopened_on_another_runtime_with_a_heartbeat_there() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let database = testing::database().unwrap();
    let settings = OwnershipSettings {
        // A busy machine must not miss three of them.
        heartbeat_interval: Duration::from_millis(300),
        takeover: Takeover::RefuseIfAlive,
        ..Default::default()
    };
    let config = || PostgresStoreConfig::new(database.url(), "bot").access(settings.clone());
    let first = runtime();
    let stores = first.block_on(open_with(&config()));
    first.block_on(stores.set_value("first")).unwrap();
    drop(first);
    runtime().block_on(async {
        stores.crypto.reopen().await.unwrap();
        stores.toy.0.reopen().await.unwrap();
        stores.set_value("second").await.unwrap();
        stores.toy.set_state(NAME, "second").await.unwrap();
        // Longer than a heartbeat is valid.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let other = AccountHandle::open(None, &config(), vec![&CRYPTO_STORE, &TOY_STORE]).await;
        assert!(matches!(other.err(), Some(OpenStoreError::OwnerAlive { .. })));
        stores.close().await;
    });
}

/// The reader of one store may have missed a row; the other store is not affected.
#[tokio::test]
async fn a_read_that_fails_during_a_transaction_of_both_stores_fails_its_own_store() {
    let database = testing::database().unwrap();
    let (stores, client) = (open_stores(&database.url()).await, connect(&database).await);
    stores.toy.profile("@alice").await.unwrap();
    let (latch, released) = oneshot::channel::<()>();
    let (reached, open) = oneshot::channel::<()>();
    let both = stores.atomically(async {
        stores.set_value("kept").await?;
        let _ = reached.send(());
        let _ = released.await;
        Ok(())
    });
    let beside = async {
        open.await.unwrap();
        client.batch_execute("ALTER TABLE matrix_sdk.toy_profiles RENAME TO away").await.unwrap();
        stores.toy.profile("@alice").await.unwrap_err();
        client.batch_execute("ALTER TABLE matrix_sdk.away RENAME TO toy_profiles").await.unwrap();
        latch.send(()).unwrap();
    };
    let (saved, ()) = tokio::join!(both, beside);
    saved.unwrap();
    let refused = stores.toy.set_state(NAME, "refused").await;
    assert!(matches!(refused, Err(ToyError::Engine(Error::ReopenRequired))));
    stores.set_value("goes on").await.unwrap();
    assert_eq!(stores.value().await.as_deref(), Some(b"goes on".as_slice()));
}
