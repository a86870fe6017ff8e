//! The leases of an account. They are not part of any transaction.

use std::collections::BTreeMap;

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::PostgresCryptoStore;

use super::{
    harness::{Verdict, debug},
    steps::{Index, name},
};

const TEN_MINUTES: u32 = 600_000;

#[derive(Default)]
pub struct Leases(BTreeMap<Index, Lease>);

struct Lease {
    holder: Index,
    generation: u64,
    is_held: bool,
}

impl Leases {
    /// Takes or renews a lease for ten minutes, or releases it (a lease of zero milliseconds).
    pub async fn take(
        &mut self,
        store: &PostgresCryptoStore,
        key: Index,
        holder: Index,
        keep: bool,
    ) -> Verdict {
        let expected = self.expect(key, holder, keep);
        let duration = if keep { TEN_MINUTES } else { 0 };
        let (key, holder) = (name("lease", &[key]), name("holder", &[holder]));
        let taken = store.try_take_leased_lock(duration, &key, &holder).await.map_err(debug)?;
        if taken == expected { Ok(()) } else { Err(format!("{taken:?}, expected {expected:?}")) }
    }

    fn expect(&mut self, key: Index, holder: Index, keep: bool) -> Option<u64> {
        let lease = self.0.entry(key).or_insert(Lease { holder, generation: 1, is_held: false });
        if lease.holder != holder {
            if lease.is_held {
                return None;
            }
            lease.generation += 1;
            lease.holder = holder;
        }
        lease.is_held = keep;
        Some(lease.generation)
    }
}
