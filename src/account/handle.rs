//! The account handle: one opening of an account, shared by all of its stores and released with the
//! last one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use deadpool_postgres::Pool;

use super::{StoreLane, find, leases, ownership, store::StoreKind};
use crate::{
    Access, Error, OpenStoreError, PostgresStoreConfig,
    account::{
        cipher::OpenedCipher,
        ownership::{
            Owner, OwnershipState,
            claim::{Claimed, claim},
            heartbeat::{self, Presence},
        },
    },
    config::conninfo::APPLICATION_NAME,
    postgres::{
        database::Database,
        migrations::{Migration, Migrations},
        schema::Schema,
        statement::{Sql, Statements},
    },
};

/// The engine's part of the schema.
const MIGRATIONS: Migrations = Migrations {
    part: "account",
    steps: &[Migration {
        version: 1,
        compatible_with: 1,
        name: "initial",
        sql: include_str!("../../migrations/account/0001_initial.sql"),
    }],
};

/// An account that is open, for all of its stores.
pub(super) struct OpenAccount {
    pub(super) cipher: OpenedCipher,
    pub(super) database: Database,
    pub(super) owner: Arc<Owner>,
    /// `None` when it is read-only.
    pub(super) presence: Option<Arc<Presence>>,
    /// Each lane's maintenance counter when the account was claimed.
    maintenance: BTreeMap<&'static str, i64>,
}

/// Makes the stores of an account. Cheap to clone.
#[derive(Clone)]
pub(crate) struct AccountHandle(Arc<Inner>);

struct Inner {
    /// Without passphrase or key, which only the first opening needs.
    config: PostgresStoreConfig,
    /// A pool of the application's: it is neither closed nor rebuilt.
    foreign_pool: Option<Pool>,
    stores: Vec<&'static StoreKind>,
    open: Mutex<Open>,
    /// Held while a store is closed or opened again.
    lifecycle: tokio::sync::Mutex<()>,
}

struct Open {
    /// Kept alive by its open stores.
    account: Weak<OpenAccount>,
    /// The last opening: an account that was lost stays lost.
    former: Former,
}

/// What is kept of an opening, for reopening the account.
#[derive(Clone)]
struct Former {
    owner: Arc<Owner>,
    cipher: OpenedCipher,
}

/// An account that has just been opened, until its stores are made.
pub(crate) struct Opening {
    pub(super) handle: AccountHandle,
    account: Arc<OpenAccount>,
}

impl Opening {
    /// A store's lane, and its share of the account.
    pub(super) fn lane(&self, kind: &'static StoreKind) -> (StoreLane, Arc<OpenAccount>) {
        (self.account.lane(kind, &self.handle.0.config), self.account.clone())
    }
}

impl AccountHandle {
    /// Opens the account for stores of these kinds.
    pub(crate) async fn open(
        foreign_pool: Option<Pool>,
        config: &PostgresStoreConfig,
        stores: Vec<&'static StoreKind>,
    ) -> Result<Opening, OpenStoreError> {
        let account = OpenAccount::open(foreign_pool.as_ref(), config, &stores, None).await?;
        let account = Arc::new(account);
        let open = Open { former: account.former(), account: Arc::downgrade(&account) };
        let handle = Self(Arc::new(Inner {
            config: PostgresStoreConfig { secret: None, ..config.clone() },
            foreign_pool,
            stores,
            open: Mutex::new(open),
            lifecycle: tokio::sync::Mutex::default(),
        }));
        Ok(Opening { handle, account })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn lifecycle(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.lifecycle.lock().await
    }

    /// Fails if the account was lost in its last opening.
    pub(super) fn check_lost(&self) -> Result<(), Error> {
        self.lock().former.owner.check_lost()
    }

    /// The lane of a store that is reopened, and its share of the account. The account is claimed
    /// again if none of its stores is open, or if the runtime of its heartbeat has ended.
    pub(super) async fn reopen_lane(
        &self,
        kind: &'static StoreKind,
    ) -> Result<(StoreLane, Arc<OpenAccount>), Error> {
        let Inner { config, foreign_pool, stores, .. } = &*self.0;
        let (found, former) = {
            let open = self.lock();
            (open.account.upgrade(), open.former.clone())
        };
        if let Some(account) = found.filter(|account| account.has_running_heartbeat()) {
            let maintenance = account.reopen_lane(kind).await.map_err(reopen_error)?;
            return Ok((StoreLane::new(&account, kind, config, maintenance), account));
        }
        let account = OpenAccount::open(foreign_pool.as_ref(), config, stores, Some(&former)).await;
        let account = account.map_err(|error| match error {
            OpenStoreError::Store(error) => reopen_error(error),
            error => Error::Reopen(Box::new(error)),
        });
        let account = Arc::new(account.inspect_err(|error| {
            if let Some(loss) = ownership::Loss::of(error) {
                former.owner.record_loss(&loss);
            }
        })?);
        *self.lock() = Open { former: account.former(), account: Arc::downgrade(&account) };
        Ok((account.lane(kind, config), account))
    }

    /// Drops a closed store's share. With the last one the account is released: now, or when the
    /// lanes of stores that were dropped have ended.
    pub(super) async fn release_share(&self, account: Arc<OpenAccount>) {
        let Some(mut account) = Arc::into_inner(account) else { return };
        if let Some(presence) = account.presence.take() {
            let Some(presence) = Arc::into_inner(presence) else { return };
            presence.release().await;
        }
        if self.0.foreign_pool.is_none() {
            account.database.close_pool();
        }
    }
}

/// A loss is returned as it is, any other error as [`Error::Reopen`].
fn reopen_error(error: Error) -> Error {
    match ownership::Loss::of(&error) {
        Some(_) => error,
        None => Error::Reopen(Box::new(OpenStoreError::Store(error))),
    }
}

/// The heartbeat skips an owner that has ended, even if other references to it remain.
impl Drop for OpenAccount {
    fn drop(&mut self) {
        self.owner.end();
    }
}

impl OpenAccount {
    /// Migrates the schema, finds or creates the account, opens its cipher, and claims the account;
    /// `former` is the earlier opening when it is reopened.
    async fn open(
        foreign_pool: Option<&Pool>,
        config: &PostgresStoreConfig,
        stores: &[&'static StoreKind],
        former: Option<&Former>,
    ) -> Result<Self, OpenStoreError> {
        config.validate()?;
        let statements = Statements::shared(Schema::new(&config.schema)?, statements(stores));
        let pool = match foreign_pool {
            Some(pool) => pool.clone(),
            None => named(config).build_pool()?,
        };
        let database = Database::new(pool, statements, &config.timeouts);
        let parts = parts(stores);
        let before = former.map(|former| &former.cipher);
        let find::Found { id, cipher, owner: found } =
            find::find(&database, config, &parts, before).await?;
        let Access::Exclusive(settings) = &config.access else {
            let (owner, maintenance) =
                (Owner::new(id, OwnershipState::default(), Arc::default()), BTreeMap::new());
            return Ok(Self { cipher, database, owner, presence: None, maintenance });
        };
        let mut lanes: Vec<&'static str> = stores.iter().map(|store| store.name).collect();
        lanes.sort_unstable();
        let owner = former.map(|former| &*former.owner);
        let claimed = claim(&database, settings, &config.account, id, &lanes, owner, found).await?;
        let Claimed { owner, presence, maintenance } = claimed;
        Ok(Self { cipher, database, owner, presence: Some(Arc::new(presence)), maintenance })
    }

    fn former(&self) -> Former {
        Former { owner: self.owner.clone(), cipher: self.cipher.clone() }
    }

    /// The lane of a store, in the state that the claim returned.
    fn lane(&self, kind: &'static StoreKind, config: &PostgresStoreConfig) -> StoreLane {
        let maintenance = self.maintenance.get(kind.name).copied().unwrap_or_default();
        StoreLane::new(self, kind, config, maintenance)
    }

    /// Whether the heartbeat's task is running: it ends with its runtime.
    fn has_running_heartbeat(&self) -> bool {
        self.presence.as_ref().is_none_or(|presence| presence.has_running_heartbeat())
    }

    /// Fences off the transactions in flight of a lane that is reopened, and returns its
    /// maintenance counter.
    async fn reopen_lane(&self, kind: &StoreKind) -> Result<i64, Error> {
        match self.presence {
            Some(_) => Ok(self.owner.reopen_lane(kind.name, &self.database).await?.maintenance),
            None => Ok(0),
        }
    }
}

/// The configuration with an `application_name` that ends with the account's name.
fn named(config: &PostgresStoreConfig) -> PostgresStoreConfig {
    let name = format!("{APPLICATION_NAME} {}", config.account);
    let name = config.application_name.clone().unwrap_or(name);
    PostgresStoreConfig { application_name: Some(name), secret: None, ..config.clone() }
}

/// The parts of the schema: the engine's, and those of these stores.
pub(crate) fn parts(stores: &[&StoreKind]) -> Vec<Migrations> {
    let stores = stores.iter().map(|store| store.migrations());
    std::iter::once(MIGRATIONS).chain(stores).collect()
}

/// Every statement of the engine and of these stores, to be prepared together.
pub(crate) fn statements(stores: &[&StoreKind]) -> Vec<&'static Sql> {
    let engine =
        [ownership::STATEMENTS, heartbeat::STATEMENTS, leases::STATEMENTS, find::STATEMENTS];
    let stores = stores.iter().flat_map(|store| store.statements).copied();
    engine.into_iter().chain(stores).flatten().copied().collect()
}
