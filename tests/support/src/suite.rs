//! Databases of upstream's test suites, which open stores by name, some more than once.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex},
};

use matrix_sdk_postgres::testing::{self, TestDatabase};

static DATABASES: LazyLock<Mutex<HashMap<String, TestDatabase>>> = LazyLock::new(Mutex::default);

/// The URL of the database with this name, and whether it was made now: with `clear`, it is.
pub async fn database(name: String, clear: bool) -> (String, bool) {
    let database = tokio::task::spawn_blocking(move || {
        let mut databases = DATABASES.lock().unwrap();
        if clear {
            databases.remove(&name);
        }
        let is_new = !databases.contains_key(&name);
        let database = databases.entry(name).or_insert_with(|| testing::database().unwrap());
        (database.url(), is_new)
    });
    database.await.unwrap()
}
