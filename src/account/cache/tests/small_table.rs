//! When all rows of a table are read with one miss.

use std::sync::Arc;

use super::{
    super::{Ahead, Cache, CacheMiss, CacheUpdate, Lookup},
    Database, all_rows, cache_key, fingerprints,
};

fn missed(cache: &Arc<Cache>, number: u8) -> CacheMiss {
    match cache.look_up(&cache_key((1, number))).unwrap() {
        Lookup::Miss(miss) => miss,
        Lookup::Hit(_) => panic!("group {number} is cached"),
    }
}

fn reads_table(miss: &CacheMiss) -> bool {
    matches!(miss.plan.prefetch, Ahead::Table { .. })
}

#[test]
fn a_small_table_is_read_by_one_miss_at_a_time_and_tried_three_times() {
    let cache = Arc::new(Cache::new(1 << 20, 100));
    let database: Database = (0..3).map(|group| ((1, group), [(0, 7)].into())).collect();
    let load_keys = || {
        let first = missed(&cache, 0);
        assert!(!reads_table(&first));
        first.fill_keys(&fingerprints(&database, 1, 10));
    };
    load_keys();
    for _ in 0..3 {
        let planned = missed(&cache, 0);
        assert!(reads_table(&planned));
        assert!(!reads_table(&missed(&cache, 1)));
        // Written meanwhile: its rows are dropped.
        cache.apply([CacheUpdate::InvalidateGroup(cache_key((1, 2)))]);
        planned.fill_prefetched(all_rows(&database, 1));
    }
    assert!(!reads_table(&missed(&cache, 0)));

    // A miss of before `clear` does not end the prefetch of one after it.
    cache.clear();
    load_keys();
    let before = missed(&cache, 0);
    assert!(reads_table(&before));
    cache.clear();
    load_keys();
    let after = missed(&cache, 0);
    drop(before);
    assert!(reads_table(&after) && !reads_table(&missed(&cache, 1)));
    after.fill_prefetched(all_rows(&database, 1));
    assert!(matches!(cache.look_up(&cache_key((1, 2))).unwrap(), Lookup::Hit(_)));
}
