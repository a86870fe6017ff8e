//! Behind PgBouncer in transaction mode: 1.18 with unnamed statements, and a newer one with prepared statements.
//! Upstream's whole suite, and saves of several bots.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex},
};

use futures_util::future::join_all;
use matrix_sdk_postgres::{
    Access, PoolSettings, PostgresCryptoStore,
    testing::{PostgresServer, TestDatabase},
};
use test_support::{
    Mode, figure,
    pooler::{Pooler, Release},
    rounds,
    stream::Ledger,
};

/// One server and pooler for the whole suite, and a database for each store name.
struct Environment {
    server: PostgresServer,
    pooler: Pooler,
    databases: Mutex<HashMap<String, TestDatabase>>,
}

impl Environment {
    fn new(release: Release) -> Self {
        let server = PostgresServer::start().unwrap();
        let pooler = Pooler::start(release, &server);
        Self { server, pooler, databases: Mutex::default() }
    }

    /// The URL of the database for that name, through the pooler.
    fn url(&self, name: &str, fresh: bool) -> String {
        let mut databases = self.databases.lock().unwrap();
        if fresh {
            databases.remove(name);
        }
        let create = || self.server.create_database().unwrap();
        let database = databases.entry(name.to_owned()).or_insert_with(create);
        self.pooler.url(&database.url(), &self.server)
    }
}

static OLD: LazyLock<Environment> = LazyLock::new(|| Environment::new(Release::Old));
static NEW: LazyLock<Environment> = LazyLock::new(|| Environment::new(Release::New));

async fn open(
    environment: &'static LazyLock<Environment>,
    prepared: bool,
    name: &str,
    passphrase: Option<&str>,
    fresh: bool,
) -> PostgresCryptoStore {
    let name = name.to_owned();
    let url = tokio::task::spawn_blocking(move || environment.url(&name, fresh)).await.unwrap();
    let config = Mode::Key
        .config(&url, "upstream")
        .pool(PoolSettings { prepared_statements: prepared, ..Default::default() });
    let config = if passphrase.is_some() { config.passphrase(passphrase) } else { config };
    PostgresCryptoStore::open_with_config(&config).await.unwrap()
}

macro_rules! suite {
    ($module:ident, $environment:expr, $prepared:expr) => {
        mod $module {
            async fn get_store(
                name: &str,
                passphrase: Option<&str>,
                clear_data: bool,
            ) -> matrix_sdk_postgres::PostgresCryptoStore {
                super::open(&$environment, $prepared, name, passphrase, clear_data).await
            }

            matrix_sdk_crypto::cryptostore_integration_tests!();
            matrix_sdk_crypto::cryptostore_integration_tests_time!();
        }
    };
}

suite!(old_unnamed, super::OLD, false);
suite!(new_prepared, super::NEW, true);

/// More bots than connections: each gets the responses to its own queries, and all acknowledged saves are stored.
async fn several_bots(release: Release, prepared: bool) {
    let server = PostgresServer::start().unwrap();
    let database = server.create_database().unwrap();
    let pooler = Pooler::start(release, &server);
    let url = pooler.url(&database.url(), &server);
    let saves = rounds(30, 1000);
    let bots = (0..6).map(|bot| {
        let url = url.clone();
        tokio::spawn(async move {
            let account = format!("bot {bot}");
            let config = Mode::Plain
                .config(&url, &account)
                .pool(PoolSettings { prepared_statements: prepared, ..Default::default() });
            let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
            let mut ledger = Ledger::default();
            for _ in 0..saves {
                ledger.save(&store).await.unwrap();
            }
            let config = config.access(Access::ReadOnly);
            ledger.check(&PostgresCryptoStore::open_with_config(&config).await.unwrap()).await
        })
    });
    let checked: usize = join_all(bots).await.into_iter().map(Result::unwrap).sum();
    assert_eq!(checked, 6 * saves);
    figure(
        &format!("{}, prepared {prepared}: acknowledged saves checked", pooler.version),
        checked,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn several_bots_behind_the_old_release() {
    several_bots(Release::Old, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_bots_behind_the_new_release() {
    several_bots(Release::New, true).await;
}
