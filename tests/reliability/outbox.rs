//! The application's own rows within `atomically`: the connection breaks at each of its messages, and
//! what the caller is told is what the database holds, of both or of neither.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use matrix_sdk_crypto::store::{CryptoStore, CryptoStoreError};
use matrix_sdk_postgres::Error;
use test_support::{
    connect, number,
    proxy::{Action, Message},
    stream::reopen,
};
use tokio_postgres::{Client, types::Type};

use crate::commit::{Harmed, is_begin, is_commit};

/// Saves a value, and a row of the application's with it.
async fn save_both(harmed: &Harmed, value: &str) -> Result<(), CryptoStoreError> {
    let store = &harmed.store;
    let insert = "INSERT INTO public.outbox VALUES ($1)";
    let work = async {
        store.set_custom_value("key", value.as_bytes().to_vec()).await?;
        let transaction = store.transaction().await?;
        transaction.query(insert, &[(&value, Type::TEXT)]).await?;
        store.set_custom_value("another", value.as_bytes().to_vec()).await?;
        transaction.query("UPDATE public.outbox SET body = body", &[]).await?;
        Ok::<_, Error>(())
    };
    store.atomically(async { work.await.map_err(CryptoStoreError::from) }).await
}

/// Does it to the first message that matches, and compares what the caller was told with what is
/// there. `None` when no message matched.
async fn told(
    harmed: &Harmed,
    watcher: &Client,
    matches: impl FnMut(&Message<'_>) -> bool + Send + 'static,
    action: Action,
    value: &str,
) -> Option<bool> {
    let done = harmed.proxy.once(matches, action);
    let result = save_both(harmed, value).await;
    let was_done = done.load(SeqCst);
    harmed.proxy.rule(|_| Action::Pass);
    let rows = format!("SELECT count(*) FROM outbox WHERE body = '{value}'");
    let rows = number(watcher, &rows).await;
    let is = |found: Option<Vec<u8>>| found.as_deref() == Some(value.as_bytes());
    let both = [harmed.value("key").await, harmed.value("another").await].map(is);
    let told = result.is_ok();
    assert_eq!((rows, both), (i64::from(told), [told; 2]), "{value}: {result:?}");
    if !told {
        reopen(&harmed.store).await;
    }
    was_done.then_some(told)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_the_application_are_there_with_the_keys_or_not_at_all() {
    let harmed = Harmed::new().await;
    let watcher = connect(&harmed.database.url()).await;
    watcher.batch_execute("CREATE TABLE outbox (body text)").await.unwrap();
    save_both(&harmed, "prepares the connection").await.unwrap();
    let (mut kept, mut lost) = (0, 0);
    let mut count = |told| if told { kept += 1 } else { lost += 1 };
    for cut in [Action::CutBefore, Action::CutDuring, Action::CutAfter] {
        for at in 1.. {
            let mut seen = 0;
            let matches = move |message: &Message<'_>| {
                seen += usize::from(message.runs());
                seen == at
            };
            let value = format!("{cut:?} at {at}");
            match told(&harmed, &watcher, matches, cut.clone(), &value).await {
                Some(told) => count(told),
                None => {
                    assert!(at > 4, "a transaction of {at} messages");
                    break;
                }
            }
        }
    }
    // The answer to COMMIT comes too late.
    let late = Action::Delay(Duration::from_secs(8));
    count(told(&harmed, &watcher, is_commit, late, "late").await.unwrap());
    assert!(kept > 0 && lost > 0, "kept {kept}, lost {lost}");
}

/// Without its `BEGIN` the application's statement would commit by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_begin_commits_no_row_of_the_application() {
    let harmed = Harmed::new().await;
    let watcher = connect(&harmed.database.url()).await;
    watcher.batch_execute("CREATE TABLE outbox (body text)").await.unwrap();
    for (loss, value) in [(Action::Drop, "dropped"), (Action::Instead("SELECT 1"), "replaced")] {
        let done = told(&harmed, &watcher, is_begin, loss, value).await;
        assert!(done.unwrap(), "a BEGIN that is {value} is overcome");
    }
}

/// A deferred constraint of the application's is checked by `COMMIT` only.
#[tokio::test(flavor = "multi_thread")]
async fn what_commit_refuses_is_returned_with_its_code_and_not_repeated() {
    let harmed = Harmed::new().await;
    let client = connect(&harmed.database.url()).await;
    let tables = "CREATE TABLE rooms (id int PRIMARY KEY);
        CREATE TABLE letters (room int REFERENCES rooms DEFERRABLE INITIALLY DEFERRED)";
    client.batch_execute(tables).await.unwrap();
    let failed = harmed.store.atomically(async {
        harmed.store.set_custom_value("key", b"value".to_vec()).await?;
        let insert = "INSERT INTO letters VALUES ($1)";
        harmed.store.transaction().await?.query(insert, &[(&1_i32, Type::INT4)]).await?;
        Ok::<_, CryptoStoreError>(())
    });
    let Err(CryptoStoreError::Backend(error)) = failed.await else { panic!("committed") };
    let Error::Database(error) = *error.downcast().unwrap() else { panic!("another error") };
    assert_eq!((error.sqlstate(), error.constraint()), (Some("23503"), Some("letters_room_fkey")));
    reopen(&harmed.store).await;

    // The same of a save alone: a trigger of the operator's.
    let trigger = "
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'check_violation'; END $$;
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON matrix_sdk.custom_values
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()";
    client.batch_execute(trigger).await.unwrap();
    let saved = harmed.store.set_custom_value("key", b"value".to_vec()).await;
    let Err(Error::Database(error)) = saved else { panic!("{saved:?}") };
    assert_eq!(error.sqlstate(), Some("23514"));
    assert_eq!(harmed.server.log().matches("ERROR:  no").count(), 1, "repeated");
}
