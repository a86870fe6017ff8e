//! A scope that begins after its account was lost: its first statement says so, and nothing of it is
//! committed.

use assert_matches::assert_matches;
use matrix_sdk_crypto::{CryptoStoreError, store::CryptoStore};
use matrix_sdk_postgres::{Error, OwnershipSettings, PostgresCryptoStore, testing};
use test_support::{Mode, connect, number, without_heartbeats};
use tokio_postgres::{Client, types::Type};

use super::{open, set};

/// The same token and a commit more: a clone of this machine has written.
const CLONED: &str = "UPDATE matrix_sdk.account_lanes SET commits = commits + 1";
/// The same token and a commit less.
const SET_BACK: &str = "UPDATE matrix_sdk.account_lanes SET commits = commits - 1";

/// What makes a scope go to the server before its commit.
#[derive(Clone, Copy, Debug)]
enum First {
    /// A read of what it has changed.
    Read,
    /// A statement of the application.
    Statement,
}

struct World {
    url: String,
    client: Client,
    store: PostgresCryptoStore,
    _database: testing::TestDatabase,
}

impl World {
    async fn new() -> Self {
        let database = testing::database().unwrap();
        let url = database.url();
        let client = connect(&url).await;
        client.batch_execute("CREATE TABLE outbox (body text)").await.unwrap();
        // A heartbeat would tell it sooner than the scope does.
        let config = Mode::Plain.config(&url, "bot").access(without_heartbeats());
        let store = open(config).await.unwrap();
        set(&store, b"before").await.unwrap();
        Self { url, client, store, _database: database }
    }

    /// Saves in a scope, and goes to the server. What that says, and what the scope does.
    async fn scope(&self, first: First) -> (Error, Error) {
        let mut said = None;
        let work = self.store.atomically(async {
            self.store.set_custom_value("within", b"value".to_vec()).await?;
            let asked = match first {
                First::Read => self.store.get_custom_value("within").await.map(drop),
                First::Statement => {
                    let insert = "INSERT INTO outbox VALUES ($1)";
                    let transaction = self.store.transaction().await?;
                    transaction.query(insert, &[(&"row", Type::TEXT)]).await.map(drop)
                }
            };
            said = asked.err();
            // Who passes over the error does not get past it.
            Ok::<_, CryptoStoreError>(())
        });
        let error = work.await.expect_err("the scope was committed");
        let CryptoStoreError::Backend(error) = error else { panic!("{error:?}") };
        (said.expect("it was answered"), *error.downcast().unwrap())
    }

    /// Runs a scope; nothing of it may be there.
    async fn refused(&self, first: First) -> (Error, Error) {
        let commits = "SELECT sum(commits)::bigint FROM matrix_sdk.account_lanes";
        let before = number(&self.client, commits).await;
        let errors = self.scope(first).await;
        assert_eq!(number(&self.client, commits).await, before);
        let rows = "SELECT (SELECT count(*) FROM outbox)
                         + (SELECT count(*) FROM matrix_sdk.custom_values)";
        assert_eq!(number(&self.client, rows).await, 1, "what there was before");
        errors
    }
}

#[tokio::test]
async fn a_scope_whose_account_was_taken_says_by_whom_and_commits_nothing() {
    for first in [First::Read, First::Statement] {
        let world = World::new().await;
        let config = Mode::Plain
            .config(&world.url, "bot")
            .access(OwnershipSettings { label: "green".to_owned(), ..Default::default() });
        let _taken = open(config).await.unwrap();
        let (said, ended) = world.refused(first).await;
        assert_matches!(said, Error::Superseded { by, .. } if by.starts_with("green on "));
        assert_matches!(ended, Error::Superseded { .. });
    }
}

/// The guard's look at the token finds nothing: the count tells.
#[tokio::test]
async fn a_scope_whose_token_was_copied_is_superseded_and_commits_nothing() {
    for first in [First::Read, First::Statement] {
        let world = World::new().await;
        world.client.batch_execute(CLONED).await.unwrap();
        let (said, ended) = world.refused(first).await;
        assert_matches!(said, Error::Superseded { .. }, "{first:?}");
        assert_matches!(ended, Error::Superseded { .. }, "{first:?}");
        assert_matches!(set(&world.store, b"later").await, Err(Error::Superseded { .. }));
        assert_matches!(world.store.reopen().await, Err(Error::Superseded { .. }));
    }
}

#[tokio::test]
async fn a_scope_in_a_database_that_was_set_back_says_so_and_commits_nothing() {
    for first in [First::Read, First::Statement] {
        let world = World::new().await;
        world.client.batch_execute(SET_BACK).await.unwrap();
        let (said, ended) = world.refused(first).await;
        assert_matches!(said, Error::DatabaseRolledBack, "{first:?}");
        assert_matches!(ended, Error::DatabaseRolledBack, "{first:?}");
        assert_matches!(set(&world.store, b"later").await, Err(Error::DatabaseRolledBack));
    }
}
