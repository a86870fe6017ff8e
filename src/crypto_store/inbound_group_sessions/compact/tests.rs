#![allow(clippy::unwrap_used)]

use proptest::{
    collection::{btree_map, vec},
    prelude::*,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{DICTIONARY, decode, encode};

/// Names and values that are not in the dictionary.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u8>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,40}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            btree_map("[a-z_]{0,12}", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn values_round_trip(value in value()) {
        let bytes = encode(&value).unwrap();
        prop_assert_eq!(decode::<Value>(&bytes).unwrap(), value);
    }

    #[test]
    fn damage_is_an_error_or_another_value(
        value in value(),
        position in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = encode(&value).unwrap();
        let index = position.index(bytes.len());
        if cut {
            bytes.truncate(index);
            prop_assert!(decode::<Value>(&bytes).is_err());
        } else {
            bytes[index] = byte;
            let _ = decode::<Value>(&bytes);
        }
    }

    #[test]
    fn garbage_does_not_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = decode::<Value>(&bytes);
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Bytes {
    array: [u8; 32],
    list: Vec<u8>,
    empty: Vec<u8>,
    numbers: Vec<u32>,
    short: [u8; 2],
}

#[test]
fn bytes_take_a_byte_each() {
    let bytes = Bytes {
        array: [0xfe; 32],
        list: vec![0xfd; 100],
        empty: Vec::new(),
        numbers: vec![1, 200, 70_000],
        short: [1, 2],
    };
    let encoded = encode(&bytes).unwrap();
    assert_eq!(decode::<Bytes>(&encoded).unwrap(), bytes);
}

#[test]
fn an_impossible_size_is_refused_before_memory_is_allocated() {
    let mut bytes = encode(&json!({ "a": 1 })).unwrap();
    bytes[1..5].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(decode::<Value>(&bytes), Err("a damaged compact form"));
}

#[test]
fn another_form_is_refused() {
    let mut bytes = encode(&json!({ "a": 1 })).unwrap();
    bytes[0] += 1;
    assert_eq!(decode::<Value>(&bytes), Err("an unknown compact form"));
    assert_eq!(decode::<Value>(&[]), Err("an unknown compact form"));
}

#[test]
fn the_dictionary_of_the_first_form_stays_as_it_is() {
    use sha2::{Digest, Sha256};
    let hash = format!("{:x}", Sha256::digest(DICTIONARY));
    assert_eq!(hash, "a67feee1e8c87a759d1bf79de219ff92839cb5ea73121b367421fbfdd1047062");
}
