//! `--migrate-only`: migrates the database's schemas, and does nothing else.

use matrix_sdk_postgres::PoolSettings;
use tracing::info;

use crate::{config::DatabaseConfig, database::DatabaseServer, errors::BridgeError, inbox};

pub async fn run(config: DatabaseConfig) -> Result<(), BridgeError> {
    /// No account is opened; a configuration has a name all the same.
    const ACCOUNT: &str = "webhook_bridge.migrate-only";
    let database = DatabaseServer::new(&config.database).await?;
    let migrate = async {
        let settings = database
            .settings(ACCOUNT)?
            .pool(PoolSettings { max_size: config.pool_size, ..Default::default() });
        settings.migrate().await?;
        inbox::migrate(&settings.build_pool()?).await
    };
    let migrated = migrate.await;
    database.stop().await;
    migrated?;
    info!("the schemas matrix_sdk and webhook_bridge are up to date");
    Ok(())
}
