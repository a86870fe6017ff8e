//! Two owners of one account that write as fast as they can, and take it over from each other.

use std::time::Duration;

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{Error, PostgresCryptoStore, testing::PostgresServer};
use test_support::{
    Mode, connect, figure, milliseconds, number, rounds, seeded, stream::is_superseded,
};
use tokio::task::JoinHandle;

/// Records the writes of each transaction, by the owner's key, and the takeovers in order. A change of an owner's
/// own token does not change the time of its takeover.
const NOTES: &str = "
CREATE TABLE writes (owner bytea, xid xid8 DEFAULT pg_current_xact_id());
CREATE TABLE takeovers (xid xid8 DEFAULT pg_current_xact_id());
CREATE FUNCTION note_write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO public.writes (owner) VALUES (new.key); RETURN new; END $$;
CREATE FUNCTION note_takeover() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO public.takeovers DEFAULT VALUES; RETURN new; END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE ON matrix_sdk.custom_values
  FOR EACH ROW EXECUTE FUNCTION note_write();
CREATE TRIGGER note AFTER UPDATE OF since ON matrix_sdk.account_owners
  FOR EACH ROW EXECUTE FUNCTION note_takeover();";

/// Writes of an owner that were committed after the takeover that superseded it.
const LATE: &str = "
SELECT count(*) FROM writes w
JOIN (SELECT row_number() OVER (ORDER BY xid) AS number, xid FROM takeovers) t
  ON w.owner = convert_to('owner ' || (t.number - 1), 'UTF8')
WHERE pg_xact_commit_timestamp(w.xid::xid) > pg_xact_commit_timestamp(t.xid::xid)";

fn write_on(store: PostgresCryptoStore, owner: usize) -> JoinHandle<(usize, Error)> {
    tokio::spawn(async move {
        let mut written = 0;
        loop {
            let value = written.to_string().into_bytes();
            match store.set_custom_value(&format!("owner {owner}"), value).await {
                Ok(()) => written += 1,
                Err(error) => return (written, error),
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn no_write_of_a_superseded_owner_after_the_takeover() {
    let mut rng = seeded("split brain");
    let server = PostgresServer::builder().setting("track_commit_timestamp", "on").start().unwrap();
    let url = server.url();
    let first = Mode::Plain.open(&url, "bot").await;
    let client = connect(&url).await;
    client.batch_execute(NOTES).await.unwrap();

    let takeovers = rounds(100, 1000);
    let mut writer = write_on(first, 0);
    let (mut acknowledged, mut former) = (0, Vec::new());
    for owner in 1..=takeovers {
        tokio::time::sleep(milliseconds(&mut rng, 20)).await;
        let next = Mode::Plain.open(&url, "bot").await;
        former.push(std::mem::replace(&mut writer, write_on(next, owner)));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    for (owner, writer) in former.into_iter().enumerate() {
        let (written, error) = writer.await.unwrap();
        assert!(is_superseded(&error), "owner {owner}: {error:?}");
        let sql = format!("SELECT count(*) FROM writes WHERE owner = 'owner {owner}'");
        let found = number(&client, &sql).await - i64::try_from(written).unwrap();
        // The last write may have been committed with an unknown outcome at the time of the takeover.
        assert!((0..=1).contains(&found), "owner {owner}: {written} acknowledged, {found} more");
        acknowledged += written;
    }
    assert_eq!(
        number(&client, "SELECT count(*) FROM takeovers").await,
        i64::try_from(takeovers).unwrap()
    );
    assert!(!writer.is_finished(), "the last owner was superseded");
    writer.abort();
    assert_eq!(number(&client, LATE).await, 0, "a superseded owner wrote after the takeover");
    assert!(acknowledged > takeovers, "too few writes: {acknowledged}");
    figure("ownership taken back and forth, times", takeovers);
    figure("writes of the owners", acknowledged);
    figure("of these after the takeover that ended them", 0);
}
