//! Stored values must stay readable by every later version of the crate and the SDK.

use matrix_sdk_crypto::{
    olm::{InboundGroupSession, PickledInboundGroupSession},
    store::CryptoStore,
};
use matrix_sdk_postgres::testing;
use test_support::{Mode, connect};

/// Rows of 0.18.0, of an account "bot": its sealed cipher, and one custom value under the key "golden".
const WITH_KEY: [&str; 3] = [
    concat!(
        "01e40182a86b64665f696e666fa44e6f6e65af636970686572746578745f696e666f81b04368614368613230",
        "506f6c793133303582a56e6f6e6365dc00184cccad74cc9a5d2fccea451b2dccadcc9e2445cccb57cc8801cc",
        "857b0643cccbccf6aa63697068657274657874dc00506ccccd2fccd0ccd9cc90cce5cc89cce44fccc87bccb9",
        "490457cca6ccd429ccbeccb6cc820621cc8fccc0ccee046f007850cceaccfc3d29cc891154cc9e57705779cc",
        "c73cccdd0a00ccf61fccf8ccfa6c45ccb00cccabcc8fcceccca5ccb0ccfd046bcce2ccdd66cca6cc8868ccca",
        "50cca550cc8804cc9875703201186413b20760e6fdb467e5b5b49953782d03e13ccd2bde9ab8bfab0753fb9c",
        "f92c52d6987ee5e07915e03fe40c854359dd",
    ),
    "10dee245fd6e4ccefaf78a844ea2655d04db0a5a2cba6a430ea3cb915400cb84",
    concat!(
        "013178c095a75af553c07fe308a6da73531700d6bf76cc725c2a2b8369eca5cd3ee460c7cb0d618f8c117ea0",
        "71e448e139ff3f04c007252f76cdfb8ca3d801e14c588e21ca25b0ada34fb7",
    ),
];
const WITH_PASSPHRASE: [&str; 3] = [
    concat!(
        "01c20282a86b64665f696e666f81b850626b646632546f4368614368613230506f6c793133303582a6726f75",
        "6e6473ce00030d40a86b64665f73616c74dc0020ccb53cccb3cc890b4acc866178ccb9cc89ccbdcca663cca3",
        "1532ccfa26243fcc99372accce1b72cc90cca3ccb635ccdeaf636970686572746578745f696e666f81b04368",
        "614368613230506f6c793133303582a56e6f6e6365dc0018cc9fcce46acce2ccb66c4425ccdc610acca8ccaa",
        "ccd0cccd6b7160cc8a520b7fccdeccd7aa63697068657274657874dc0050ccdccce30d741accaf0465173a51",
        "1504ccea2fcca5cce610ccddccb0ccaecc8a551d7875cc8c0cccbe1fccac5e45cc85cc81ccc42acc8137ccd3",
        "76ccf834cc972a16ccf30ecca23011cce3ccd6ccd0ccbbcca1315c454537ccf865ccd7cce8ccd3090cccf2cc",
        "a74accb9cca1ccd168ccf3cc91ccbb3073320118cccd73e0190f87649bef74034d3f6d6412d2ed7aaeaa0739",
        "b43abbd90848e1c2cf1582b5957cd10c9c47db2af8407e9b",
    ),
    "ac76acdbda71730b5da0d76bfee30092984626463275c40dacc5d87bdb8d0a4b",
    concat!(
        "013166ef93d1de1da3969c58386a7dba4125afd04530136eea74dcfff67e12df8e2083f9eae2ccfc7e6b683a",
        "fb4da49e109c61b884303ed9dbe5476185e1607f3097f46f0a68368eee81c7",
    ),
];

#[tokio::test]
async fn values_of_the_first_version_are_read() {
    for (mode, kind, [cipher, key, data]) in
        [(Mode::Key, 2, WITH_KEY), (Mode::Passphrase, 1, WITH_PASSPHRASE)]
    {
        let database = testing::database().unwrap();
        let url = database.url();
        // Creates the schema, into which the golden rows are inserted.
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

/// A room key in the compressed form, whose dictionary must never change.
#[tokio::test]
async fn room_keys_of_the_first_version_are_read() {
    let expected = include_str!("../golden/room_key.json");
    let json: serde_json::Value = serde_json::from_str(expected).unwrap();
    let expected: PickledInboundGroupSession = serde_json::from_value(json.clone()).unwrap();
    let room_id = expected.room_id.clone();
    let session_id = InboundGroupSession::from_pickle(expected).unwrap().session_id().to_owned();
    let rows = include_str!("../golden/room_key.txt").lines().filter(|line| !line.starts_with('#'));
    for (mode, row) in [Mode::Plain, Mode::Key].into_iter().zip(rows) {
        let database = testing::database().unwrap();
        let url = database.url();
        let client = connect(&url).await;
        Mode::Plain.open(&url, "plain").await;
        let [cipher, ..] = WITH_KEY;
        let columns: Vec<_> = row.split(' ').map(|column| format!("'\\x{column}'")).collect();
        let insert = format!(
            "INSERT INTO matrix_sdk.accounts (name, secret_kind, cipher, cipher_written_by)
                 VALUES ('bot', 2, '\\x{cipher}', 18);
             INSERT INTO matrix_sdk.megolm_inbound_sessions
                 (account_id, backup_generation, sender_data_type,
                  room_id, session_id, sender_key, data)
             SELECT id, 0, 2, {} FROM matrix_sdk.accounts",
            columns.join(", ")
        );
        client.batch_execute(&insert).await.unwrap();
        let store = mode.open(&url, if mode == Mode::Plain { "plain" } else { "bot" }).await;
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
