//! A synchronous standby that is not there, and waits for it that are cancelled.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::{connect, eventually, number};

/// Makes every commit wait for a standby that does not exist; with an empty name, none waits. The client's own
/// commits must not wait (`synchronous_commit`).
pub async fn wait_for_standby(client: &Client, name: &str) {
    let sql = format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'");
    client.batch_execute(&sql).await.unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let shown = "SELECT count(*) FROM pg_settings WHERE name = 'synchronous_standby_names' \
                 AND setting = '";
    let shown = format!("{shown}{name}'");
    eventually("the setting is read", || async { number(client, &shown).await == 1 }).await;
    // The checkpointer wakes the waiting backends a moment after this session has the setting.
    tokio::time::sleep(Duration::from_millis(300)).await;
}

/// Cancels every wait of a server for its standby, as an impatient administrator does.
pub struct Cancelling {
    end: Arc<AtomicBool>,
    task: JoinHandle<i64>,
}

impl Cancelling {
    pub fn start(url: &str) -> Self {
        let (end, url) = (Arc::new(AtomicBool::new(false)), url.to_owned());
        let task = tokio::spawn({
            let end = end.clone();
            async move {
                let admin = connect(&url).await;
                let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity \
                              WHERE wait_event = 'SyncRep' AND pid <> pg_backend_pid()";
                let mut cancelled = 0;
                while !end.load(SeqCst) {
                    cancelled += number(&admin, cancel).await;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                cancelled
            }
        });
        Self { end, task }
    }

    /// Returns how many waits were cancelled.
    pub async fn stop(self) -> i64 {
        self.end.store(true, SeqCst);
        self.task.await.unwrap()
    }
}
