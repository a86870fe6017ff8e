//! Rule 12: leases expire by the server's clock, and the generation changes with the holder.

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::testing;
use test_support::{Mode, connect};

const MODES: [Mode; 2] = [Mode::Plain, Mode::Key];
const LONG: u32 = 600_000;

/// Moves the end of all leases back, as if time had passed.
async fn pass_ten_minutes(client: &tokio_postgres::Client) {
    let sql = "UPDATE matrix_sdk.lease_locks SET expires_at = expires_at - interval '10 minutes'";
    client.batch_execute(sql).await.unwrap();
}

#[tokio::test]
async fn a_generation_rises_only_when_the_holder_changes() {
    for mode in MODES {
        let database = testing::database().unwrap();
        let url = database.url();
        let store = mode.open(&url, "bot").await;
        let (one, two) = (&store, &store);
        let client = connect(&url).await;
        assert_eq!(one.try_take_leased_lock(LONG, "key", "one").await.unwrap(), Some(1));
        assert_eq!(one.try_take_leased_lock(LONG, "key", "one").await.unwrap(), Some(1));
        assert_eq!(two.try_take_leased_lock(LONG, "key", "two").await.unwrap(), None, "{mode:?}");
        // A lease belongs to its holder, whichever store takes it.
        assert_eq!(two.try_take_leased_lock(LONG, "key", "one").await.unwrap(), Some(1));
        // Expired, but not taken: the same holder keeps its generation.
        pass_ten_minutes(&client).await;
        assert_eq!(one.try_take_leased_lock(LONG, "key", "one").await.unwrap(), Some(1));
        pass_ten_minutes(&client).await;
        assert_eq!(two.try_take_leased_lock(LONG, "key", "two").await.unwrap(), Some(2));
        assert_eq!(one.try_take_leased_lock(LONG, "key", "one").await.unwrap(), None);
        // Leases of other keys are independent.
        assert_eq!(one.try_take_leased_lock(LONG, "other", "one").await.unwrap(), Some(1));
    }
}

#[tokio::test]
async fn a_lease_of_zero_milliseconds_releases() {
    for mode in MODES {
        let database = testing::database().unwrap();
        let store = mode.open(&database.url(), "bot").await;
        assert_eq!(store.try_take_leased_lock(LONG, "key", "one").await.unwrap(), Some(1));
        assert_eq!(store.try_take_leased_lock(0, "key", "one").await.unwrap(), Some(1));
        assert_eq!(store.try_take_leased_lock(LONG, "key", "two").await.unwrap(), Some(2));
        // Only the holder can release.
        assert_eq!(store.try_take_leased_lock(0, "key", "one").await.unwrap(), None, "{mode:?}");
        assert_eq!(store.try_take_leased_lock(LONG, "key", "two").await.unwrap(), Some(2));
    }
}

/// The end is the server's clock plus the duration; the client's clock is not used.
#[tokio::test]
async fn a_lease_ends_by_the_servers_clock() {
    let database = testing::database().unwrap();
    let store = Mode::Plain.open(&database.url(), "bot").await;
    let client = connect(&database.url()).await;
    let before = "SELECT clock_timestamp()::text";
    let before: String = client.query_one(before, &[]).await.unwrap().get(0);
    store.try_take_leased_lock(LONG, "key", "one").await.unwrap();
    let sql = "SELECT expires_at - $1::text::timestamptz >= interval '10 minutes'
                  AND expires_at <= clock_timestamp() + interval '10 minutes'
               FROM matrix_sdk.lease_locks";
    let in_range: bool = client.query_one(sql, &[&before]).await.unwrap().get(0);
    assert!(in_range);
    // The longest possible lease.
    let longest = store.try_take_leased_lock(u32::MAX, "longest", "one").await.unwrap();
    assert_eq!(longest, Some(1));
}

#[tokio::test]
async fn the_same_lease_of_two_accounts_is_two_leases() {
    for mode in MODES {
        let database = testing::database().unwrap();
        let url = database.url();
        let (ours, theirs) = (mode.open(&url, "ours").await, mode.open(&url, "theirs").await);
        for round in 1..=3 {
            let holder = format!("holder {round}");
            let ours = ours.try_take_leased_lock(0, "key", &holder).await.unwrap();
            assert_eq!(ours, Some(round), "{mode:?}");
        }
        assert_eq!(theirs.try_take_leased_lock(LONG, "key", "one").await.unwrap(), Some(1));
        assert_eq!(ours.try_take_leased_lock(LONG, "key", "one").await.unwrap(), Some(4));
    }
}

/// Of many holders that take a lease concurrently, one gets it.
#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_concurrent_holders_takes_the_lease() {
    let database = testing::database().unwrap();
    let store = Mode::Plain.open(&database.url(), "bot").await;
    let holders: Vec<String> = (0..32).map(|number| format!("holder {number}")).collect();
    let attempts = holders.iter().map(|holder| store.try_take_leased_lock(LONG, "key", holder));
    let taken = futures_util::future::join_all(attempts).await;
    assert_eq!(taken.into_iter().filter_map(Result::unwrap).count(), 1);
}
