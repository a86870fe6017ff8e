//! Rule 20: roles with fewer privileges, and errors that name the missing one.

use assert_matches::assert_matches;
use matrix_sdk_postgres::{
    Access, OpenStoreError, PoolSettings, PostgresCryptoStore, PostgresStoreConfig,
    testing::{self, TestDatabase},
};
use test_support::{Mode, connect};
use tokio_postgres::Client;

use super::exercise;

/// The roles of one test: an owner of the schema and a bot, both with a login.
struct Roles {
    database: TestDatabase,
    superuser: Client,
}

impl Roles {
    async fn create() -> Self {
        let database = testing::database().unwrap();
        let superuser = connect(&database.url()).await;
        let roles = Self { database, superuser };
        for role in ["owner", "bot"] {
            let sql = format!("CREATE ROLE {} LOGIN PASSWORD 'password'", roles.name(role));
            roles.execute(&sql).await;
        }
        roles
    }

    /// Roles are global to the server, so their names contain the database's.
    fn name(&self, role: &str) -> String {
        format!("{}_{role}", self.database.name())
    }

    fn url(&self, role: &str) -> String {
        let url = self.database.url();
        let (_, server) = url.split_once('@').unwrap();
        format!("postgres://{}:password@{server}", self.name(role))
    }

    fn config(&self, role: &str) -> PostgresStoreConfig {
        Mode::Key.config(&self.url(role), "bot")
    }

    /// Runs SQL as the superuser, with `owner` and `bot` in braces replaced by their names.
    async fn execute(&self, sql: &str) {
        let sql = sql.replace("{owner}", &self.name("owner")).replace("{bot}", &self.name("bot"));
        self.superuser.batch_execute(&sql).await.unwrap();
    }

    async fn drop(self) {
        for role in ["bot", "owner"] {
            let name = self.name(role);
            self.execute(&format!("DROP OWNED BY {name} CASCADE; DROP ROLE {name}")).await;
        }
    }
}

/// The grants of docs/operations.md.
const CAREFUL_GRANTS: &str = "
CREATE SCHEMA matrix_sdk AUTHORIZATION {owner};
GRANT USAGE ON SCHEMA matrix_sdk TO {bot};
ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA matrix_sdk
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {bot};";

async fn open(config: &PostgresStoreConfig) -> Result<PostgresCryptoStore, OpenStoreError> {
    PostgresCryptoStore::open_with_config(config).await
}

#[tokio::test]
async fn a_role_without_create_works_on_a_schema_made_beforehand() {
    let roles = Roles::create().await;
    roles.execute(CAREFUL_GRANTS).await;
    let bot = roles.config("bot").run_migrations(false);
    let pending = open(&bot).await.unwrap_err();
    assert_matches!(pending, OpenStoreError::MigrationsPending { found: 0, required: 1.., .. });

    // The owner migrates, with an account of its own.
    let owner = PostgresStoreConfig::new(roles.url("owner"), "migrator");
    open(&owner).await.unwrap();
    let read_only = "REVOKE INSERT, UPDATE, DELETE ON matrix_sdk.schema_migrations FROM {bot}";
    roles.execute(read_only).await;
    exercise(&open(&bot).await.unwrap()).await;
    // With migrations allowed nothing is to be migrated, so no privilege is missing.
    exercise(&open(&roles.config("bot")).await.unwrap()).await;
    roles.drop().await;
}

#[tokio::test]
async fn a_schema_without_usage_is_permission_denied() {
    let roles = Roles::create().await;
    roles.execute(CAREFUL_GRANTS).await;
    open(&PostgresStoreConfig::new(roles.url("owner"), "migrator")).await.unwrap();
    roles.execute("REVOKE USAGE ON SCHEMA matrix_sdk FROM {bot}").await;
    for run_migrations in [true, false] {
        let error = open(&roles.config("bot").run_migrations(run_migrations)).await.unwrap_err();
        assert_matches!(&error, OpenStoreError::PermissionDenied { .. });
        let text = error.to_string();
        assert!(text.contains("permission denied for schema matrix_sdk"), "{text}");
    }
    roles.drop().await;
}

#[tokio::test]
async fn a_role_that_may_not_create_the_schema_is_permission_denied() {
    let roles = Roles::create().await;
    let error = open(&roles.config("bot")).await.unwrap_err();
    assert_matches!(&error, OpenStoreError::PermissionDenied { what, .. } => {
        assert!(what.contains("migrating"), "{what}");
    });
    let text = error.to_string();
    assert!(text.contains("permission denied for database"), "{text}");

    // An existing schema in which the role may not create tables.
    roles.execute("CREATE SCHEMA matrix_sdk; GRANT USAGE ON SCHEMA matrix_sdk TO {bot}").await;
    let error = open(&roles.config("bot")).await.unwrap_err();
    assert_matches!(&error, OpenStoreError::PermissionDenied { .. });
    assert!(error.to_string().contains("permission denied for schema matrix_sdk"), "{error}");
    roles.drop().await;
}

#[tokio::test]
async fn a_role_that_may_only_read_is_permission_denied() {
    let roles = Roles::create().await;
    roles.execute(CAREFUL_GRANTS).await;
    open(&PostgresStoreConfig::new(roles.url("owner"), "migrator")).await.unwrap();
    roles.execute("REVOKE INSERT ON matrix_sdk.accounts FROM {bot}").await;
    let error = open(&roles.config("bot")).await.unwrap_err();
    assert_matches!(&error, OpenStoreError::PermissionDenied { what, .. } => {
        assert!(what.contains("account"), "{what}");
    });
    assert!(error.to_string().contains("permission denied for table accounts"), "{error}");
    roles.execute("REVOKE SELECT ON matrix_sdk.schema_migrations FROM {bot}").await;
    let error = open(&roles.config("bot")).await.unwrap_err();
    assert_matches!(&error, OpenStoreError::PermissionDenied { .. });
    roles.drop().await;
}

/// Settings of a role apply to each of its sessions.
#[tokio::test]
async fn settings_of_the_role_do_not_matter() {
    let roles = Roles::create().await;
    roles.execute(CAREFUL_GRANTS).await;
    let settings = [
        "search_path = ''",
        "datestyle = 'SQL, DMY'",
        "intervalstyle = 'iso_8601'",
        "bytea_output = 'escape'",
        "default_transaction_isolation = 'serializable'",
        "timezone = 'Pacific/Auckland'",
    ];
    for role in ["{owner}", "{bot}"] {
        for setting in settings {
            roles.execute(&format!("ALTER ROLE {role} SET {setting}")).await;
        }
    }
    open(&PostgresStoreConfig::new(roles.url("owner"), "migrator")).await.unwrap();
    exercise(&open(&roles.config("bot").run_migrations(false)).await.unwrap()).await;
    let unnamed =
        roles.config("bot").pool(PoolSettings { prepared_statements: false, ..Default::default() });
    exercise(&open(&unnamed).await.unwrap()).await;
    roles.drop().await;
}

/// The role may change rows, but has no privilege for the sequence of the account ids.
#[tokio::test]
async fn a_sequence_that_lags_behind_needs_no_privilege() {
    let roles = Roles::create().await;
    roles.execute(CAREFUL_GRANTS).await;
    open(&PostgresStoreConfig::new(roles.url("owner"), "migrator")).await.unwrap();
    roles.execute("ALTER TABLE matrix_sdk.accounts ALTER id RESTART WITH 1").await;
    exercise(&open(&roles.config("bot").run_migrations(false)).await.unwrap()).await;
    roles.drop().await;
}

/// The error must not suggest that the server is a standby.
#[tokio::test]
async fn a_read_only_role_is_reported_as_that() {
    let roles = Roles::create().await;
    roles.execute(CAREFUL_GRANTS).await;
    open(&PostgresStoreConfig::new(roles.url("owner"), "migrator")).await.unwrap();
    open(&roles.config("bot")).await.unwrap();
    roles.execute("ALTER ROLE {bot} SET default_transaction_read_only = on").await;
    // An existing account, a new one, and a missing schema.
    for config in [
        roles.config("bot"),
        PostgresStoreConfig::new(roles.url("bot"), "new"),
        roles.config("bot").schema("elsewhere"),
    ] {
        let error = open(&config).await.unwrap_err();
        assert_matches!(&error, OpenStoreError::ReadOnlyRole { role } => {
            assert_eq!(*role, roles.name("bot"));
        });
        let text = error.to_string();
        assert!(text.contains("default_transaction_read_only"), "{text}");
        assert!(!text.contains("standby"), "{text}");
    }
    // Read-only stores accept such a role.
    open(&roles.config("bot").access(Access::ReadOnly)).await.unwrap();
    roles.drop().await;
}
