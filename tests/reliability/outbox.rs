//! The application's rows within `atomically`: the connection breaks at each message, and the result agrees with
//! the database, in which both the rows and the keys are stored, or neither.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use matrix_sdk_crypto::store::{CryptoStore, CryptoStoreError};
use matrix_sdk_postgres::Error;
use test_support::{
    connect, number,
    proxy::{Action, Message},
    stream::reopen,
};
use tokio_postgres::{Client, types::Type};

use crate::commit::{ProxiedStore, is_begin, is_commit};

/// Saves a value together with a row of the application.
async fn save_both(proxied: &ProxiedStore, value: &str) -> Result<(), CryptoStoreError> {
    let store = &proxied.store;
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

/// Applies the action to the first message that matches, and compares the result with the database. Returns
/// whether the save succeeded, or `None` if no message matched.
async fn save_with_fault(
    proxied: &ProxiedStore,
    watcher: &Client,
    matches: impl FnMut(&Message<'_>) -> bool + Send + 'static,
    action: Action,
    value: &str,
) -> Option<bool> {
    let done = proxied.proxy.once(matches, action);
    let result = save_both(proxied, value).await;
    let was_done = done.load(SeqCst);
    proxied.proxy.rule(|_| Action::Pass);
    let rows = format!("SELECT count(*) FROM outbox WHERE body = '{value}'");
    let rows = number(watcher, &rows).await;
    let is = |found: Option<Vec<u8>>| found.as_deref() == Some(value.as_bytes());
    let both = [proxied.value("key").await, proxied.value("another").await].map(is);
    let is_saved = result.is_ok();
    assert_eq!((rows, both), (i64::from(is_saved), [is_saved; 2]), "{value}: {result:?}");
    if !is_saved {
        reopen(&proxied.store).await;
    }
    was_done.then_some(is_saved)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_the_application_are_committed_with_the_keys_or_not_at_all() {
    let proxied = ProxiedStore::new().await;
    let watcher = connect(&proxied.database.url()).await;
    watcher.batch_execute("CREATE TABLE outbox (body text)").await.unwrap();
    save_both(&proxied, "prepares the connection").await.unwrap();
    let (mut kept, mut lost) = (0, 0);
    let mut count = |is_saved| if is_saved { kept += 1 } else { lost += 1 };
    for cut in [Action::CutBefore, Action::CutDuring, Action::CutAfter] {
        for at in 1.. {
            let mut seen = 0;
            let matches = move |message: &Message<'_>| {
                seen += usize::from(message.runs());
                seen == at
            };
            let value = format!("{cut:?} at {at}");
            match save_with_fault(&proxied, &watcher, matches, cut.clone(), &value).await {
                Some(is_saved) => count(is_saved),
                None => {
                    assert!(at > 4, "the transaction had only {at} messages");
                    break;
                }
            }
        }
    }
    // The response to COMMIT is too late.
    let late = Action::Delay(Duration::from_secs(8));
    count(save_with_fault(&proxied, &watcher, is_commit, late, "late").await.unwrap());
    assert!(kept > 0 && lost > 0, "kept {kept}, lost {lost}");
}

/// Without its `BEGIN` the application's statement would be committed by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_begin_commits_no_row_of_the_application() {
    let proxied = ProxiedStore::new().await;
    let watcher = connect(&proxied.database.url()).await;
    watcher.batch_execute("CREATE TABLE outbox (body text)").await.unwrap();
    for (loss, value) in [(Action::Drop, "dropped"), (Action::Instead("SELECT 1"), "replaced")] {
        let done = save_with_fault(&proxied, &watcher, is_begin, loss, value).await;
        assert!(done.unwrap(), "a BEGIN that is {value} was not retried");
    }
}

/// Until then the application has seen no result that another transaction might not return.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_lost_before_the_applications_first_answer_is_replaced() {
    let proxied = ProxiedStore::new().await;
    let watcher = connect(&proxied.database.url()).await;
    watcher.batch_execute("CREATE TABLE outbox (body text)").await.unwrap();
    let text = b"INSERT INTO public.outbox";
    let is_insert =
        move |message: &Message<'_>| message.body.windows(text.len()).any(|at| at == text);
    for cut in [Action::CutBefore, Action::CutDuring, Action::CutAfter] {
        let value = format!("{cut:?}");
        let is_saved = save_with_fault(&proxied, &watcher, is_insert, cut, &value).await;
        assert_eq!(is_saved, Some(true), "{value}");
    }
}

/// A deferred constraint of the application is checked at `COMMIT`.
#[tokio::test(flavor = "multi_thread")]
async fn what_commit_refuses_is_returned_with_its_code_and_not_repeated() {
    let proxied = ProxiedStore::new().await;
    let client = connect(&proxied.database.url()).await;
    let tables = "CREATE TABLE rooms (id int PRIMARY KEY);
        CREATE TABLE letters (room int REFERENCES rooms DEFERRABLE INITIALLY DEFERRED)";
    client.batch_execute(tables).await.unwrap();
    let failed = proxied.store.atomically(async {
        proxied.store.set_custom_value("key", b"value".to_vec()).await?;
        let insert = "INSERT INTO letters VALUES ($1)";
        proxied.store.transaction().await?.query(insert, &[(&1_i32, Type::INT4)]).await?;
        Ok::<_, CryptoStoreError>(())
    });
    let Err(CryptoStoreError::Backend(error)) = failed.await else { panic!("committed") };
    let Error::Database(error) = *error.downcast().unwrap() else { panic!("another error") };
    assert_eq!((error.sqlstate(), error.constraint()), (Some("23503"), Some("letters_room_fkey")));
    reopen(&proxied.store).await;

    // The same for a save alone, with a trigger of the operator.
    let trigger = "
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'check_violation'; END $$;
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON matrix_sdk.custom_values
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()";
    client.batch_execute(trigger).await.unwrap();
    let saved = proxied.store.set_custom_value("key", b"value".to_vec()).await;
    let Err(Error::Database(error)) = saved else { panic!("{saved:?}") };
    assert_eq!(error.sqlstate(), Some("23514"));
    assert_eq!(proxied.server.log().matches("ERROR:  no").count(), 1, "repeated");
}
