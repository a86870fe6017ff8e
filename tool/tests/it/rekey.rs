//! `rekey`.

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{OpenStoreError, PostgresCryptoStore};

use test_support::fixture::{CUSTOM_KEY, CUSTOM_VALUE};

use crate::support::{PASSPHRASE, Place, TextFile};

const COMMAND: [&str; 4] = ["rekey", "--account", "bot", "--yes"];

#[tokio::test]
async fn an_account_gets_another_passphrase_beside_its_bot_and_then_a_key() {
    let place = Place::new();
    let (bot, _) = place.filled("bot").await;
    let mut command = place.command(&COMMAND);
    command.env("STORE_PASSPHRASE", PASSPHRASE).env("NEW_STORE_PASSPHRASE", "another one");
    let done = place.run_command(command).await.expect(0);
    assert!(done.out.contains("backups from before"), "{done:?}");

    // The bot goes on, and may be opened again without any secret.
    bot.close().await.unwrap();
    bot.reopen().await.unwrap();
    assert_eq!(bot.get_custom_value(CUSTOM_KEY).await.unwrap().as_deref(), Some(CUSTOM_VALUE));
    bot.close().await.unwrap();

    let config = place.config("bot");
    let old = config.clone().passphrase(Some(PASSPHRASE));
    let old = PostgresCryptoStore::open_with_config(&old).await;
    assert!(matches!(old, Err(OpenStoreError::WrongPassphrase { .. })));
    let new = config.clone().passphrase(Some("another one"));
    drop(PostgresCryptoStore::open_with_config(&new).await.unwrap());

    let old = TextFile::new("another one\n");
    let key = TextFile::new(&format!("{}\n", "0a".repeat(32)));
    let args = ["--passphrase-file", old.path(), "--new-key-file", key.path()];
    place.run(&[&COMMAND[..], &args].concat()).await.expect(0);
    let store = PostgresCryptoStore::open_with_config(&config.key(Some(&[10; 32]))).await.unwrap();
    assert_eq!(store.get_custom_value(CUSTOM_KEY).await.unwrap().as_deref(), Some(CUSTOM_VALUE));
    store.close().await.unwrap();
    place.run(&["verify", "--account", "bot", "--key-file", key.path()]).await.expect(0);
}

#[tokio::test]
async fn what_cannot_be_done_changes_nothing() {
    let place = Place::new();
    drop(place.filled("bot").await);
    let cipher =
        "SELECT hashtext(cipher::text)::bigint FROM matrix_sdk.accounts WHERE name = 'bot'";
    let before = place.number(cipher).await;

    let unnamed = place.run_unlocked(&COMMAND).await.expect(1);
    assert!(unnamed.err.contains("New passphrase: not given"), "{unnamed:?}");
    let mut wrong = place.command(&COMMAND);
    wrong.env("STORE_PASSPHRASE", "guess").env("NEW_STORE_PASSPHRASE", "new");
    let wrong = place.run_command(wrong).await.expect(1);
    assert!(wrong.err.contains("wrong passphrase"), "{wrong:?}");
    let mut unasked = place.command(&COMMAND[..3]);
    unasked.env("STORE_PASSPHRASE", PASSPHRASE).env("NEW_STORE_PASSPHRASE", "new");
    place.run_command(unasked).await.expect(4);
    let mut short = place.command(&COMMAND);
    short.env("STORE_PASSPHRASE", PASSPHRASE).env("NEW_STORE_KEY", "abcd");
    let short = place.run_command(short).await.expect(1);
    assert!(short.err.contains("not 32 bytes"), "{short:?}");
    assert_eq!(place.number(cipher).await, before);

    let plain = PostgresCryptoStore::open_with_config(&place.config("plain")).await.unwrap();
    plain.close().await.unwrap();
    let mut encrypt = place.command(&["rekey", "--account", "plain", "--yes"]);
    encrypt.env("NEW_STORE_PASSPHRASE", "new");
    let refused = place.run_command(encrypt).await.expect(1);
    assert!(refused.err.contains("is not encrypted"), "{refused:?}");
}
