//! Whether the homeserver's view of a device is ours.

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{
    PostgresCryptoStore,
    admin::{CheckStatus, check_device, check_key_backup, check_one_time_keys},
    testing,
};
use ruma::{
    OneTimeKeyAlgorithm, api::client::keys::get_keys::v3::Response, encryption::CrossSigningKey,
    serde::Raw, uint, user_id,
};
use serde_json::{Value, json};
use test_support::{
    Mode,
    machine::{Relay, open_machine},
};

/// A machine's device, with a signature by its self-signing key, and the public cross-signing keys.
struct Signed {
    device: Value,
    master: Raw<CrossSigningKey>,
    self_signing: Raw<CrossSigningKey>,
}

async fn signed(store: &PostgresCryptoStore) -> Signed {
    let machine = open_machine(user_id!("@bot:example.org"), store.clone()).await;
    Relay::default().serve(&machine).await;
    let requests = machine.bootstrap_cross_signing(false).await.unwrap();
    let keys = requests.upload_signing_keys_req;
    let json = |key: &_| serde_json::to_value::<&CrossSigning>(key).unwrap();
    let uploaded = requests.upload_signatures_req.signed_keys.values().next().unwrap();
    let uploaded =
        uploaded.iter().map(|(_, key)| serde_json::from_str::<Value>(key.get()).unwrap());
    let uploaded = uploaded.into_iter().find(|key| key["device_id"] == "DEVICE").unwrap();
    // The homeserver adds the signature to those that it has.
    let device = store.load_account().await.unwrap().unwrap().device_keys();
    let mut device = serde_json::to_value(device).unwrap();
    let user = "@bot:example.org";
    for (id, signature) in uploaded["signatures"][user].as_object().unwrap() {
        device["signatures"][user][id] = signature.clone();
    }
    let raw = |key: Option<CrossSigning>| {
        Raw::from_json(serde_json::value::to_raw_value(&json(&key.unwrap())).unwrap())
    };
    Signed { device, master: raw(keys.master_key), self_signing: raw(keys.self_signing_key) }
}

type CrossSigning = matrix_sdk_crypto::types::CrossSigningKey;

fn answer(device: &Value, keys: Option<&Signed>) -> Response {
    let user = user_id!("@bot:example.org");
    let mut answer = Response::new();
    let raw = Raw::from_json(serde_json::value::to_raw_value(device).unwrap());
    answer.device_keys.entry(user.to_owned()).or_default().insert("DEVICE".into(), raw);
    if let Some(keys) = keys {
        answer.master_keys.insert(user.to_owned(), keys.master.clone());
        answer.self_signing_keys.insert(user.to_owned(), keys.self_signing.clone());
    }
    answer
}

fn statuses(checks: &[matrix_sdk_postgres::admin::Check]) -> Vec<CheckStatus> {
    checks.iter().map(|check| check.status).collect()
}

#[tokio::test]
async fn each_disagreement_is_found() {
    use CheckStatus::{Ok, Problem, Warning};
    let database = testing::database().unwrap();
    let store = Mode::Key.open(&database.url(), "bot").await;
    assert_eq!(store.own_device().await.unwrap(), None);
    let ours = signed(&store).await;
    let own = store.own_device().await.unwrap().unwrap();
    assert!(own.is_uploaded && own.master_key.is_some(), "{own:?}");
    let other = signed(&Mode::Key.open(&database.url(), "other").await).await;

    let check = |answer: &Response| statuses(&check_device(&own, answer));
    assert_eq!(check(&answer(&ours.device, Some(&ours))), [Ok, Ok, Ok]);
    // Without the identity, and with one that was made elsewhere.
    assert_eq!(check(&answer(&ours.device, None)), [Ok, Warning, Warning]);
    assert_eq!(check(&answer(&ours.device, Some(&other))), [Ok, Warning, Problem]);
    assert_eq!(check(&answer(&other.device, Some(&ours))), [Problem, Warning, Ok]);
    assert_eq!(check(&Response::new()), [Problem, Warning]);
    // What is malformed is no panic.
    assert_eq!(check(&answer(&json!({ "keys": 7 }), Some(&ours))), [Problem, Warning, Ok]);
    let mut forged = ours.device.clone();
    forged["algorithms"] = json!(["m.forged"]);
    assert_eq!(check(&answer(&forged, Some(&ours))), [Problem, Warning, Ok]);

    let counts = |count| [(OneTimeKeyAlgorithm::SignedCurve25519, count)].into_iter().collect();
    assert_eq!(check_one_time_keys(&own, &counts(uint!(50))).status, Ok);
    assert_eq!(check_one_time_keys(&own, &counts(uint!(0))).status, Warning);

    assert_eq!(check_key_backup(&own, None).status, Ok);
    assert_eq!(check_key_backup(&own, Some(("1", None))).status, Warning);
    let changes = matrix_sdk_crypto::store::types::Changes {
        backup_version: Some("1".to_owned()),
        ..Default::default()
    };
    store.save_changes(changes).await.unwrap();
    let own = store.own_device().await.unwrap().unwrap();
    assert_eq!(check_key_backup(&own, Some(("1", None))).status, Ok);
    assert_eq!(check_key_backup(&own, Some(("2", None))).status, Problem);
    assert_eq!(check_key_backup(&own, None).status, Problem);
}
