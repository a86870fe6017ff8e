//! What operators do with stores: look inside, check, migrate, change secrets, remove accounts.
//!
//! The command `matrix-postgres` calls these functions; a bot or a dashboard can call them, too.
//! Each takes a [`PostgresStoreConfig`](crate::PostgresStoreConfig), makes connections of its own, and closes
//! them when it ends. Of the configuration the access, the cache and the migrations' switch are not used:
//! what a function does is in its documentation. Each checks server, role and schema as opening a store
//! does, and fails with the same errors.
//!
//! A change is one transaction: it is made, or the error says why not. Two errors come after `COMMIT` was sent:
//! one that says that its outcome is unknown, and
//! [`OpenStoreError::NotReplicated`](crate::OpenStoreError::NotReplicated), with which the change was made;
//! [`verify`] has it in its report ([`VerifyReport::is_complete`]).
//!
//! None disturbs a bot that is running, unless it says so. What changes rows while a bot runs raises the
//! maintenance counter of the account's lane, so that the bot drops its cache; what cannot be done while a
//! bot runs fails with [`OpenStoreError::OwnerAlive`](crate::OpenStoreError::OwnerAlive), which names the
//! owner.

mod archive;
mod check;
mod connection;
mod delete;
mod device;
mod doctor;
mod health;
mod migrate;
mod owner;
mod password;
mod prune;
mod quarantine;
mod rekey;
mod reset_device;
mod self_test;
mod stats;
mod table_counts;
mod time;
mod unlock;
mod verify;

pub use crate::crypto_store::OwnDevice;

pub use self::{
    archive::{BackedUpTable, Backup, BackupError, RestoredDevice, backup, read_backup, restore},
    check::{Check, CheckStatus},
    delete::{count_account, delete_account},
    device::{check_device, check_key_backup, check_one_time_keys},
    doctor::{DoctorOptions, doctor},
    health::{Health, HealthStatus, PoolHealth},
    migrate::{
        MigrationStatus, PartStatus, PendingMigration, migration_script, migration_status,
        try_migrations,
    },
    password::has_password,
    prune::{PruneRules, count_prunable, prune},
    quarantine::{PutBack, put_back},
    rekey::rekey,
    reset_device::{count_device, reset_device},
    self_test::{SelfTest, SelfTestStep, self_test},
    stats::{AccountStats, OwnerStats, Stats, TableStats, stats},
    table_counts::{DeletedRows, TableCount},
    verify::{VerifiedTable, VerifyOptions, VerifyReport, verify},
};
