//! A scope that begins after its owner was superseded or its database rolled back: its first statement fails,
//! and nothing is committed.

use assert_matches::assert_matches;
use matrix_sdk_crypto::{CryptoStoreError, store::CryptoStore};
use matrix_sdk_postgres::{Error, OwnershipSettings, PostgresCryptoStore, testing};
use test_support::{Mode, connect, number, without_heartbeats};
use tokio_postgres::{Client, types::Type};

use super::{open, set};

/// The same token and one more commit: a clone of this machine has written.
const CLONED: &str = "UPDATE matrix_sdk.account_lanes SET commits = commits + 1";
/// The same token and one commit less.
const ROLL_BACK: &str = "UPDATE matrix_sdk.account_lanes SET commits = commits - 1";

/// The operation that sends a scope's statements before its commit.
#[derive(Clone, Copy, Debug)]
enum First {
    /// A read of a row that the scope has changed.
    Read,
    /// A statement of the application.
    Statement,
}

struct Environment {
    url: String,
    client: Client,
    store: PostgresCryptoStore,
    _database: testing::TestDatabase,
}

impl Environment {
    async fn new() -> Self {
        let database = testing::database().unwrap();
        let url = database.url();
        let client = connect(&url).await;
        client.batch_execute("CREATE TABLE outbox (body text)").await.unwrap();
        // Without a heartbeat, which would detect it before the scope.
        let config = Mode::Plain.config(&url, "bot").access(without_heartbeats());
        let store = open(config).await.unwrap();
        set(&store, b"before").await.unwrap();
        Self { url, client, store, _database: database }
    }

    /// Saves in a scope and sends it. Returns the error of that operation, and the scope's.
    async fn scope(&self, first: First) -> (Error, Error) {
        let mut first_error = None;
        let work = self.store.atomically(async {
            self.store.set_custom_value("within", b"value".to_vec()).await?;
            let result = match first {
                First::Read => self.store.get_custom_value("within").await.map(drop),
                First::Statement => {
                    let insert = "INSERT INTO outbox VALUES ($1)";
                    let transaction = self.store.transaction().await?;
                    transaction.query(insert, &[(&"row", Type::TEXT)]).await.map(drop)
                }
            };
            first_error = result.err();
            // Ignoring the error does not make the scope succeed.
            Ok::<_, CryptoStoreError>(())
        });
        let error = work.await.expect_err("the scope was committed");
        let CryptoStoreError::Backend(error) = error else { panic!("{error:?}") };
        (first_error.expect("the first operation succeeded"), *error.downcast().unwrap())
    }

    /// Runs a scope, and asserts that nothing of it was committed.
    async fn refused(&self, first: First) -> (Error, Error) {
        let commits = "SELECT sum(commits)::bigint FROM matrix_sdk.account_lanes";
        let before = number(&self.client, commits).await;
        let errors = self.scope(first).await;
        assert_eq!(number(&self.client, commits).await, before);
        let rows = "SELECT (SELECT count(*) FROM outbox)
                         + (SELECT count(*) FROM matrix_sdk.custom_values)";
        assert_eq!(number(&self.client, rows).await, 1, "rows of the scope were committed");
        errors
    }
}

#[tokio::test]
async fn a_superseded_scopes_error_names_the_owner_and_nothing_is_committed() {
    for first in [First::Read, First::Statement] {
        let environment = Environment::new().await;
        let config = Mode::Plain
            .config(&environment.url, "bot")
            .access(OwnershipSettings { label: "green".to_owned(), ..Default::default() });
        let _taken = open(config).await.unwrap();
        let (first_error, ended) = environment.refused(first).await;
        assert_matches!(first_error, Error::Superseded { by, .. } if by.starts_with("green on "));
        assert_matches!(ended, Error::Superseded { .. });
    }
}

/// The guard finds the right token: only the count differs.
#[tokio::test]
async fn a_scope_whose_token_was_copied_is_superseded_and_commits_nothing() {
    for first in [First::Read, First::Statement] {
        let environment = Environment::new().await;
        environment.client.batch_execute(CLONED).await.unwrap();
        let (first_error, ended) = environment.refused(first).await;
        assert_matches!(first_error, Error::Superseded { .. }, "{first:?}");
        assert_matches!(ended, Error::Superseded { .. }, "{first:?}");
        assert_matches!(set(&environment.store, b"later").await, Err(Error::Superseded { .. }));
        assert_matches!(environment.store.reopen().await, Err(Error::Superseded { .. }));
    }
}

#[tokio::test]
async fn a_scope_in_a_rolled_back_database_fails_and_commits_nothing() {
    for first in [First::Read, First::Statement] {
        let environment = Environment::new().await;
        environment.client.batch_execute(ROLL_BACK).await.unwrap();
        let (first_error, ended) = environment.refused(first).await;
        assert_matches!(first_error, Error::DatabaseRolledBack, "{first:?}");
        assert_matches!(ended, Error::DatabaseRolledBack, "{first:?}");
        assert_matches!(set(&environment.store, b"later").await, Err(Error::DatabaseRolledBack));
    }
}
