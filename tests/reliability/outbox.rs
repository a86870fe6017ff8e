//! The application's own rows within `atomically`: the connection breaks at each of its messages, and
//! what the caller is told is what the database holds, of both or of neither.

use std::time::Duration;

use matrix_sdk_crypto::store::{CryptoStore, CryptoStoreError};
use matrix_sdk_postgres::Error;
use tokio_postgres::types::Type;

use crate::{
    commit::Harmed,
    common::{connect, number},
    support::proxy::Action,
};

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

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_the_application_are_there_with_the_keys_or_not_at_all() {
    let harmed = Harmed::new().await;
    let watcher = connect(&harmed.database.url()).await;
    watcher.batch_execute("CREATE TABLE outbox (body text)").await.unwrap();
    save_both(&harmed, "prepares the connection").await.unwrap();
    let cuts = [
        Action::CutBefore,
        Action::CutDuring,
        Action::CutAfter,
        Action::Delay(Duration::from_secs(8)),
    ];
    let (mut kept, mut lost) = (0, 0);
    for cut in cuts {
        let mut at = 1;
        loop {
            let value = format!("{cut:?} at {at}");
            let mut seen = 0;
            let matches = move |message: &crate::support::proxy::Message<'_>| {
                seen += usize::from(message.runs());
                seen == at
            };
            let done = harmed.proxy.once(matches, cut.clone());
            let result = save_both(&harmed, &value).await;
            let was_cut = done.load(std::sync::atomic::Ordering::SeqCst);
            harmed.proxy.rule(|_| Action::Pass);
            let sql = format!("SELECT count(*) FROM outbox WHERE body = '{value}'");
            let rows = number(&watcher, &sql).await;
            let is = |found: Option<Vec<u8>>| found.as_deref() == Some(value.as_bytes());
            let both = [harmed.value("key").await, harmed.value("another").await].map(is);
            let expected = (i64::from(result.is_ok()), [result.is_ok(); 2]);
            assert_eq!((rows, both), expected, "{value}: {result:?}");
            if !was_cut {
                assert!(at > 4, "a transaction of {at} messages");
                break;
            }
            match result {
                Ok(()) => kept += 1,
                Err(_) => {
                    lost += 1;
                    crate::support::stream::reopen(&harmed.store).await;
                }
            }
            at += 1;
        }
    }
    assert!(kept > 0 && lost > 0, "kept {kept}, lost {lost}");
}
