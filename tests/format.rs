//! What was written once must be read for ever, by every later version of the crate and the SDK.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Mode, connect};
use matrix_sdk_crypto::{
    olm::{InboundGroupSession, PickledInboundGroupSession},
    store::CryptoStore,
};
use matrix_sdk_postgres::testing;

/// Rows of 0.18.0: the account's sealed cipher, and one custom value under the key "golden".
const WITH_KEY: [&str; 3] = [
    concat!(
        "82a86b64665f696e666fa44e6f6e65af636970686572746578745f696e666f81b04368614368613230506f6c",
        "793133303582a56e6f6e6365dc0018cc8bcce6cc8c09cca5ccb4ccde4b6935cc914eccdfcc8accef1f56ccdc",
        "cc8ccca51261cce76faa63697068657274657874dc0050ccfa18266b62095fcc8c737bcca3ccaa3fcca93fcc",
        "8acc8636ccff0ccca94eccd5ccecccfdccfb60ccf140cc8256cce7cc80403f0d4cccebcc922116cc8326cce5",
        "cce97f20ccfcccc843ccfaccff5957cc8e2a087a64ccaaccff2617ccd6cc9eccfa5acca96acce23eccd03dcc",
        "dbccf9ccd8ccafccb1cc9ccc82",
    ),
    "ef1750cb1f03c783209a2096afe63b5b092a387dc7c58b26e29e777d779c1d24",
    concat!(
        "0131f568f4c54b3bbe252774e615fbec046fb30e636fc6ecfc8b74e0500fd2431f66961474e445eddb354e1c",
        "491a29b62ee495a2066acf2f3f78dccb33401ac85a9e3be857de539b71ad3f",
    ),
];
const WITH_PASSPHRASE: [&str; 3] = [
    concat!(
        "82a86b64665f696e666f81b850626b646632546f4368614368613230506f6c793133303582a6726f756e6473",
        "ce00030d40a86b64665f73616c74dc002004cc92ccc4183700ccb1ccd1cc933455cc8043cce85eccfb41cceb",
        "ccad644bccc0cc84ccb7cca0cc970bcca7cc8824cce26caf636970686572746578745f696e666f81b0436861",
        "4368613230506f6c793133303582a56e6f6e6365dc00181a1f1f360cccff10ccf87e1bcce024ccd3cccfcc8e",
        "cccf4accdfcc9a56cc983dcc95ccddaa63697068657274657874dc0050cc9eccedccf37ecca825cc8eccf7cc",
        "c30b17cc9dcca22accb95fccffccb40a0f0d2acc9eccd33817cce456ccc20d300919cc96ccd9ccde1dcca447",
        "ccc3ccbc177bccf9cc80657e39ccc6cca4cca015ccbcccf17044ccd9cc84cce2ccdb1fcccc4911ccbfcca9cc",
        "8bcc8f55175e38290869276fcca9cc96cc9a",
    ),
    "3b513e9f873a7c1529f910d999ecad0b015356e73e859cf4d6c493d9b77e3de5",
    concat!(
        "0131c3601910cec0101a88ba002c32b7f46be3e2e2ea23d034fb25ba0760cb10a5d8ab9536b2f7b9609216e6",
        "bdd11583992d30f1a74fdbcfe282f347d33f9893730ae9eaf83f66f3d847d9",
    ),
];

#[tokio::test]
async fn values_of_the_first_version_are_read() {
    for (mode, kind, [cipher, key, data]) in
        [(Mode::Key, 2, WITH_KEY), (Mode::Passphrase, 1, WITH_PASSPHRASE)]
    {
        let database = testing::database().unwrap();
        let url = database.url();
        // The schema comes first, the golden rows next.
        Mode::Plain.open(&url, "other").await;
        let client = connect(&url).await;
        let insert = format!(
            "WITH a AS (INSERT INTO matrix_sdk.accounts (name, secret_kind, cipher, cipher_written_by)
                 VALUES ('bot', {kind}, '\\x{cipher}', 18) RETURNING id)
             INSERT INTO matrix_sdk.custom_values (account_id, key, data)
             SELECT id, '\\x{key}', '\\x{data}' FROM a"
        );
        client.batch_execute(&insert).await.unwrap();
        let store = mode.open(&url, "bot").await;
        let value = store.get_custom_value("golden").await.unwrap();
        assert_eq!(value.unwrap(), b"a value of version 0.18.0", "{mode:?}");
    }
}

/// A room key in the compact form, whose dictionary must never change.
#[tokio::test]
async fn room_keys_of_the_first_version_are_read() {
    let expected = include_str!("golden/room_key.json");
    let json: serde_json::Value = serde_json::from_str(expected).unwrap();
    let expected: PickledInboundGroupSession = serde_json::from_value(json.clone()).unwrap();
    let room_id = expected.room_id.clone();
    let session_id = InboundGroupSession::from_pickle(expected).unwrap().session_id().to_owned();
    let rows = include_str!("golden/room_key.txt").lines().filter(|line| !line.starts_with('#'));
    for (mode, row) in [Mode::Plain, Mode::Key].into_iter().zip(rows) {
        let database = testing::database().unwrap();
        let url = database.url();
        let client = connect(&url).await;
        Mode::Plain.open(&url, "plain").await;
        let [cipher, ..] = WITH_KEY;
        let columns: Vec<_> = row.split(' ').map(|column| format!("'\\x{column}'")).collect();
        let insert = format!(
            "INSERT INTO matrix_sdk.accounts (name, secret_kind, cipher, cipher_written_by)
                 VALUES ('key', 2, '\\x{cipher}', 18);
             INSERT INTO matrix_sdk.megolm_inbound_sessions
                 (account_id, backup_generation, sender_data_type,
                  room_id, session_id, sender_key, data)
             SELECT id, 0, 2, {} FROM matrix_sdk.accounts",
            columns.join(", ")
        );
        client.batch_execute(&insert).await.unwrap();
        let store = mode.open(&url, if mode == Mode::Plain { "plain" } else { "key" }).await;
        let session = store.get_inbound_group_session(&room_id, &session_id).await.unwrap();
        let pickle = session.unwrap().pickle().await;
        assert_eq!(serde_json::to_value(&pickle).unwrap(), json, "{mode:?}");
    }
}

#[tokio::test]
async fn a_sealed_value_is_at_most_64_bytes_longer() {
    let database = testing::database().unwrap();
    let url = database.url();
    let client = connect(&url).await;
    let store = Mode::Key.open(&url, "bot").await;
    for length in [0, 1, 100, 127, 128, 16_384, 1_000_000] {
        store.set_custom_value("golden", vec![7; length]).await.unwrap();
        assert_eq!(store.get_custom_value("golden").await.unwrap().unwrap().len(), length);
        let row = client.query_one("SELECT length(data) FROM matrix_sdk.custom_values", &[]).await;
        let stored: i32 = row.unwrap().get(0);
        let more = usize::try_from(stored).unwrap() - length;
        assert!((1..=64).contains(&more), "{length} bytes became {stored}");
    }
}
