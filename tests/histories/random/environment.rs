//! The environment in which histories run: a database, and the means to inject faults.

use deadpool_postgres::Pool;
use matrix_sdk_postgres::{
    PostgresCryptoStore,
    testing::{self, TestDatabase},
};
use test_support::{Mode, connect, eventually};
use tokio_postgres::Client;

use super::{matrix::Configuration, proxy::Proxy, steps::Refusal};

/// Counts the rows that are written, or the commits, and refuses those that are armed. Counted with a
/// sequence, which is not rolled back with a transaction, so that a retry can succeed.
const FAULTS: &str = "
CREATE SCHEMA faults;
CREATE SEQUENCE faults.rows;
CREATE TABLE faults.armed (trigger text, code text, first bigint, last bigint);
CREATE TABLE faults.own_rows (account text);
CREATE FUNCTION faults.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    armed faults.armed;
    number bigint;
BEGIN
    SELECT * INTO armed FROM faults.armed WHERE trigger = TG_NAME;
    IF FOUND THEN
        number := nextval('faults.rows');
        IF number BETWEEN armed.first AND armed.last THEN
            RAISE EXCEPTION 'refused by the test' USING ERRCODE = armed.code;
        END IF;
    END IF;
    RETURN NULL;
END $$;
DO $$
DECLARE name text;
BEGIN
    FOR name IN
        SELECT table_name FROM information_schema.columns
        WHERE table_schema = 'matrix_sdk' AND column_name = 'account_id'
    LOOP
        EXECUTE format('CREATE TRIGGER refuse AFTER INSERT OR UPDATE OR DELETE ON matrix_sdk.%I '
                       'FOR EACH ROW EXECUTE FUNCTION faults.refuse()', name);
    END LOOP;
END $$;
-- Every commit updates its count in this table.
CREATE CONSTRAINT TRIGGER refuse_commit AFTER UPDATE ON matrix_sdk.account_lanes
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION faults.refuse()";

/// Runs one history at a time, each in an account of its own.
pub struct Environment {
    _database: TestDatabase,
    client: Client,
    pub proxy: Proxy,
    /// Leads to the proxy.
    url: String,
    /// For stores opened with `open_with_pool`.
    pub pool: Pool,
}

impl Environment {
    pub async fn make() -> Self {
        let database = testing::database().unwrap();
        let (proxy, url) = Proxy::start(&database.socket_url()).await;
        // Migrates the schema.
        let store = Mode::Plain.open(&url, "first").await;
        matrix_sdk_crypto::store::CryptoStore::close(&store).await.unwrap();
        let client = connect(&database.socket_url()).await;
        client.batch_execute(FAULTS).await.unwrap();
        let pool = Mode::Plain.config(&url, "any").build_pool().unwrap();
        Self { _database: database, client, proxy, url, pool }
    }

    pub async fn open(&self, configuration: Configuration, account: &str) -> PostgresCryptoStore {
        configuration.open(self, &self.url, account).await
    }

    /// Terminates all connections except this one, and waits for their end.
    pub async fn cut(&self) {
        let terminate = "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
                         WHERE datname = current_database() AND pid <> pg_backend_pid()";
        let terminated = self.client.query(terminate, &[]).await.unwrap();
        let pids: Vec<i32> = terminated.iter().map(|row| row.get(0)).collect();
        // PostgreSQL 13 has no function that waits.
        let left = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY ($1)";
        eventually("the terminated connections end", async || {
            self.client.query_one(left, &[&pids]).await.unwrap().get::<_, i64>(0) == 0
        })
        .await;
    }

    pub async fn arm(&self, refusal: Refusal) {
        let (trigger, code, first, last) = match refusal {
            Refusal::Always { row } => ("refuse", "23514", row, u8::MAX),
            Refusal::Passing { row, times } => ("refuse", "40001", row, row + times - 1),
            Refusal::AtCommit { times } => ("refuse_commit", "40001", 1, times),
        };
        let arm = "WITH start AS (SELECT setval('faults.rows', 1, false))
                   INSERT INTO faults.armed SELECT $1, $2, $3, $4 FROM start";
        let (first, last) = (i64::from(first), i64::from(last));
        self.client.execute(arm, &[&trigger, &code, &first, &last]).await.unwrap();
    }

    pub async fn disarm(&self) {
        self.client.execute("DELETE FROM faults.armed", &[]).await.unwrap();
    }

    /// Number of rows that the application has written with `transaction()`.
    pub async fn own_rows(&self, account: &str) -> i64 {
        let count = "SELECT count(*) FROM faults.own_rows WHERE account = $1";
        self.client.query_one(count, &[&account]).await.unwrap().get(0)
    }
}
