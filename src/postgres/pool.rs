//! The connection pool and its errors.

use std::sync::{Arc, OnceLock};

use deadpool::managed::{Metrics, QueueMode};
use deadpool_postgres::{
    Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Runtime, TimeoutType, WeakPool,
};

use crate::{
    DatabaseError, Error, OpenStoreError, PostgresStoreConfig,
    postgres::connect::{self, Connector},
};

impl PostgresStoreConfig {
    /// Builds a pool of connections, to be shared by many stores with
    /// [`PostgresStores::open_with_pool`](crate::PostgresStores::open_with_pool), or by
    /// the application's own queries. No connection is made yet.
    ///
    /// # Errors
    ///
    /// [`OpenStoreError::InvalidConfig`] when the URL, a file it names or a setting is malformed.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use matrix_sdk_postgres::{PostgresStoreConfig, PostgresStores};
    ///
    /// let alice = PostgresStoreConfig::new("postgres://localhost/bots", "alice-bot");
    /// let bob = alice.clone().account("bob-bot");
    /// let pool = alice.build_pool()?;
    /// let alice_stores = PostgresStores::open_with_pool(pool.clone(), &alice).await?;
    /// let bob_stores = PostgresStores::open_with_pool(pool, &bob).await?;
    /// # Ok(()) }
    /// ```
    pub fn build_pool(&self) -> Result<Pool, OpenStoreError> {
        let (config, connector) = Connector::new(self)?;
        // A dead connection is noticed by its task, so recycling needs no round trip.
        let manager_config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_connect(config, connector.clone(), manager_config);
        let (age, idle) = (self.pool.max_connection_age, self.pool.max_connection_idle);
        let is_retired = move |metrics: &Metrics| {
            age.is_some_and(|age| metrics.age() > age)
                || idle.is_some_and(|idle| metrics.last_used() > idle)
        };
        let built = Arc::new(OnceLock::<WeakPool>::new());
        let this = built.clone();
        let pool = Pool::builder(manager)
            .max_size(self.pool.max_size)
            .runtime(Runtime::Tokio1)
            // The connection that was used last has its statements and the server's caches.
            .queue_mode(QueueMode::Lifo)
            .wait_timeout(Some(self.pool.wait_timeout))
            // No create_timeout: the connector enforces the limit, and its error names the step
            // that hung.
            .pre_recycle(deadpool_postgres::Hook::sync_fn(move |_, metrics| {
                // Also those that are not taken any more.
                if let Some(pool) = this.get().and_then(WeakPool::upgrade) {
                    pool.retain(|_, metrics| !is_retired(&metrics));
                }
                if is_retired(metrics) {
                    return Err(deadpool_postgres::HookError::message("connection retired"));
                }
                Ok(())
            }))
            .build()
            .map_err(|error| OpenStoreError::InvalidConfig(error.to_string()))?;
        let _ = built.set(pool.weak());
        connector.register(&pool);
        Ok(pool)
    }
}

pub(super) fn pool_error(error: PoolError) -> Error {
    match error {
        PoolError::Timeout(TimeoutType::Wait) => Error::PoolTimeout,
        PoolError::Timeout(_) => {
            Error::Database(DatabaseError::broken("no connection within the connect timeout"))
        }
        PoolError::Backend(error) => connect::login_error(&error).into(),
        PoolError::Closed => Error::StoreClosed,
        PoolError::NoRuntimeSpecified => Error::Database(DatabaseError::permanent(
            "the pool has timeouts but no runtime: build it with Runtime::Tokio1",
        )),
        PoolError::PostCreateHook(_) => Error::Database(DatabaseError::broken(
            "the pool's post-create hook refused a connection",
        )),
    }
}
