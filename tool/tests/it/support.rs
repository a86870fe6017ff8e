//! Runs the binary.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

use matrix_sdk_postgres::{
    PostgresCryptoStore, PostgresStoreConfig,
    testing::{self, TestDatabase},
    tokio_postgres::{Client, NoTls, connect},
};
use serde_json::Value;

use test_support::fixture::Fixture;

pub const PASSPHRASE: &str = "correct horse battery staple";

/// A database, and the tool that is to work on it.
pub struct Place {
    pub database: TestDatabase,
}

/// What a run of the tool has left.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self {
            code: output.status.code().expect("ended by a signal"),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    /// Fails the test unless the tool ended with this code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}\n{}", self.out, self.err);
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("{}\n{}", self.out, self.err))
    }
}

/// The binary, without anything of the environment that it reads.
pub fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_matrix-postgres"));
    command.env_clear().stdin(Stdio::null());
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}

pub fn run(command: &mut Command) -> Ran {
    Ran::of(command.output().unwrap())
}

impl Place {
    pub fn new() -> Self {
        Self { database: testing::database().unwrap() }
    }

    pub fn url(&self) -> String {
        self.database.url()
    }

    /// The tool with these arguments.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = binary();
        command.env("DATABASE_URL", self.url()).args(args);
        command
    }

    /// Runs the tool, off the runtime's threads: a bot may go on meanwhile.
    pub async fn run(&self, args: &[&str]) -> Ran {
        self.run_command(self.command(args)).await
    }

    /// The same with the passphrase of encrypted accounts.
    pub async fn run_unlocked(&self, args: &[&str]) -> Ran {
        let mut command = self.command(args);
        command.env("STORE_PASSPHRASE", PASSPHRASE);
        self.run_command(command).await
    }

    pub async fn run_command(&self, mut command: Command) -> Ran {
        tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap()
    }

    pub fn config(&self, account: &str) -> PostgresStoreConfig {
        PostgresStoreConfig::new(self.url(), account)
    }

    /// An encrypted account.
    pub async fn open(&self, account: &str) -> PostgresCryptoStore {
        let config = self.config(account).passphrase(Some(PASSPHRASE));
        PostgresCryptoStore::open_with_config(&config).await.unwrap()
    }

    /// An encrypted account with a row in every table.
    pub async fn filled(&self, account: &str) -> (PostgresCryptoStore, Fixture) {
        let (store, fixture) = (self.open(account).await, Fixture::new().await);
        fixture.fill(&store).await;
        (store, fixture)
    }

    pub async fn client(&self) -> Client {
        let (client, connection) = connect(&self.url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Each look at a row of `withheld_sessions` takes its time.
    pub async fn slow_down_a_table(&self) {
        let slow = "CREATE FUNCTION slow(bigint) RETURNS boolean LANGUAGE plpgsql AS
                        $$ BEGIN PERFORM pg_sleep(0.4); RETURN true; END $$;
                    ALTER TABLE matrix_sdk.withheld_sessions RENAME TO slow_rows;
                    CREATE VIEW matrix_sdk.withheld_sessions AS
                        SELECT * FROM matrix_sdk.slow_rows WHERE slow(account_id)";
        self.client().await.batch_execute(slow).await.unwrap();
    }

    pub async fn number(&self, sql: &str) -> i64 {
        self.client().await.query_one(sql, &[]).await.unwrap().get(0)
    }
}

/// A file with this text, in a directory that is gone with the value.
pub struct TextFile(std::path::PathBuf);

impl TextFile {
    pub fn new(text: &str) -> Self {
        let name = format!("matrix-postgres-{}-{}", std::process::id(), fastrand::u64(..));
        let path = std::env::temp_dir().join(name);
        std::fs::File::create_new(&path).unwrap().write_all(text.as_bytes()).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TextFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
