//! The store's look-up beside the same prepared statement on bare tokio-postgres, over a Unix socket.
//! What decoding costs is what the memory store's look-up takes, for it decodes too.

use std::time::Instant;

use matrix_sdk_crypto::store::DynCryptoStore;
use matrix_sdk_postgres::PostgresCryptoStore;
use serde::{Deserialize, Serialize};

use crate::{
    bench::{
        Scale,
        contenders::{Contender, Distance, Place},
        results, statistics,
    },
    common::connect,
    shelf::{Key, Shelf, name},
};

/// Seconds per look-up, measured in turns.
#[derive(Default, Serialize, Deserialize)]
pub struct Comparison {
    pub store: Vec<f64>,
    pub bare: Vec<f64>,
    pub decoding: Vec<f64>,
}

pub async fn compare(place: &Place, shelf: &Shelf, scale: Scale) {
    let unix = Contender::Postgres { distance: Distance::Unix, encrypted: false };
    let store = shelf.reader(place, unix).await;
    let memory = shelf.reader(place, Contender::Memory).await;
    let client = connect(&place.url(Distance::Unix)).await;
    let texts = PostgresCryptoStore::statement_texts("matrix_sdk").unwrap();
    let (_, sql, types) =
        texts.into_iter().find(|(name, ..)| *name == "megolm_inbound_sessions.get").unwrap();
    let statement = client.prepare_typed(&sql, types).await.unwrap();
    let account = "SELECT id FROM matrix_sdk.accounts WHERE name = $1";
    let account: i64 = client.query_one(account, &[&name(unix)]).await.unwrap().get(0);

    let (turns, count) = scale.pick((1, 10), (51, 200), (101, 1_000));
    let keys: Vec<Key> = shelf.keys.iter().cycle().take(count).cloned().collect();
    let in_memory = async |key: &Key| found(&*memory, key).await;
    let in_store = async |key: &Key| found(&*store, key).await;
    let on_the_wire = async |key: &Key| {
        let (room_id, session_id) = (key.room_id.as_bytes(), key.session_id.as_bytes());
        let row = client.query_one(&statement, &[&account, &room_id, &session_id]).await.unwrap();
        assert!(row.get::<_, &[u8]>(2).len() > 100);
    };
    let mut comparison = Comparison::default();
    for _ in 0..turns {
        comparison.store.push(time(&keys, &in_store).await);
        comparison.bare.push(time(&keys, &on_the_wire).await);
        comparison.decoding.push(time(&keys, &in_memory).await);
    }
    println!("{}", comparison.summary());
    results::write("bare", &comparison);
}

async fn found(store: &DynCryptoStore, key: &Key) {
    let session = store.get_inbound_group_session(&key.room_id, &key.session_id).await;
    assert!(session.unwrap().is_some());
}

/// Seconds per key.
async fn time(keys: &[Key], look_up: &impl AsyncFn(&Key)) -> f64 {
    let started = Instant::now();
    for key in keys {
        look_up(key).await;
    }
    started.elapsed().as_secs_f64() / keys.len() as f64
}

impl Comparison {
    /// The store's time as a multiple of the bare statement's and the decoding's.
    pub fn ratio(&self) -> f64 {
        let floor: Vec<f64> =
            self.bare.iter().zip(&self.decoding).map(|(bare, decoding)| bare + decoding).collect();
        statistics::median_ratio(&self.store, &floor)
    }

    pub fn summary(&self) -> String {
        let microseconds = |values: &[f64]| statistics::median(values.to_vec()) * 1e6;
        format!(
            "A look-up over a Unix socket: {:.1} µs; the bare statement {:.1} µs, decoding {:.1} µs; \
             ratio {:.2} (median of {} turns)",
            microseconds(&self.store),
            microseconds(&self.bare),
            microseconds(&self.decoding),
            self.ratio(),
            self.store.len()
        )
    }
}
