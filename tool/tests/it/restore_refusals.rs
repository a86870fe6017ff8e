//! What `restore` refuses before it changes anything.

use matrix_sdk_crypto::store::CryptoStore;

use crate::{
    backup::{backed_up, path, tool},
    support::Place,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_not_restored_into_another_account_than_was_named() {
    let (place, other, folder) = (Place::new(), Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "bot.age");
    place.filled("bot").await.0.close().await.unwrap();
    backed_up(&place, &file).await;
    let named = tool(&other, &["restore", &file, "--account", "another"]);
    let mut in_environment = tool(&other, &["restore", &file]);
    in_environment.env("STORE_ACCOUNT", "another");
    for command in [named, in_environment] {
        let refused = other.run_command(command).await.expect(4);
        assert!(refused.err.contains("of the account \"bot\", not of \"another\""), "{refused:?}");
    }
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'matrix_sdk'";
    assert_eq!(other.number(schemas).await, 0);
    other.run_command(tool(&other, &["restore", &file, "--account", "bot"])).await.expect(0);
}

/// Programs of that schema may be running.
#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_there_is_not_migrated_by_the_way() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "bot.age");
    place.filled("bot").await.0.close().await.unwrap();
    backed_up(&place, &file).await;
    let older =
        "DELETE FROM matrix_sdk.schema_migrations m WHERE part = 'crypto_store' AND version =
                     (SELECT max(version) FROM matrix_sdk.schema_migrations WHERE part = m.part)";
    place.client().await.batch_execute(older).await.unwrap();
    let failed = place.run_command(tool(&place, &["restore", &file])).await.expect(1);
    assert!(failed.err.contains("matrix-postgres migrate does it"), "{failed:?}");
}
