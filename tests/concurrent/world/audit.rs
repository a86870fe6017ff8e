//! What the database holds: looked at before and after.

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{Access, PostgresCryptoStore, PostgresStoreConfig};

use crate::{
    common::{Mode, connect, number},
    history::{Journal, Note},
    support::eventually,
    workload::{
        ACCOUNTS, MACHINE, create_machine, readers,
        registers::{REGISTERS, keys, op_in},
    },
};

/// Notes what each transaction wrote, in the transaction itself.
const TRACES: &str = "
CREATE TABLE traces (account bigint, key bytea, value bytea, xid xid8 DEFAULT pg_current_xact_id());
CREATE FUNCTION trace_value() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO public.traces (account, key, value) VALUES (new.account_id, new.key, new.data);
  RETURN new; END $$;
CREATE FUNCTION trace_hash() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO public.traces (account, key, value) VALUES (new.account_id, 'hash', new.hash);
  RETURN new; END $$;
CREATE TRIGGER trace AFTER INSERT OR UPDATE ON matrix_sdk.custom_values
  FOR EACH ROW EXECUTE FUNCTION trace_value();
CREATE TRIGGER trace AFTER INSERT OR UPDATE ON matrix_sdk.message_hashes
  FOR EACH ROW EXECUTE FUNCTION trace_hash();";

const TRACED: &str = "
SELECT a.name, t.key, t.value, t.xid::text FROM traces t JOIN matrix_sdk.accounts a ON a.id = t.account";

const OTHERS: &str = "
SELECT count(*) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND datname = current_database() AND pid <> pg_backend_pid()";

/// Makes the accounts.
pub async fn prepare(url: &str, journal: &Journal) {
    for account in ACCOUNTS {
        Mode::Plain.open(url, account).await.close().await.unwrap();
    }
    create_machine(Mode::Plain.open(url, MACHINE).await).await;
    connect(url).await.batch_execute(TRACES).await.unwrap();
    count(url, journal).await;
}

async fn observe(url: &str, account: &str) -> PostgresCryptoStore {
    let config = PostgresStoreConfig::new(url, account).access(Access::Observe);
    PostgresCryptoStore::open_with_config(&config).await.unwrap()
}

async fn count(url: &str, journal: &Journal) {
    for account in ACCOUNTS {
        let commits = observe(url, account).await.commit_count().await.unwrap();
        journal.note(account, Note::Count { commits });
    }
}

/// Waits for whatever is still on its way; then notes what is there.
pub async fn look(url: &str, journal: &Journal) {
    let client = connect(url).await;
    eventually("all others have gone", || async { number(&client, OTHERS).await == 0 }).await;
    for account in ACCOUNTS {
        let store = observe(url, account).await;
        for register in REGISTERS {
            for key in keys(register) {
                journal.note(account, readers::read(&store, register, key).await.unwrap());
            }
        }
    }
    count(url, journal).await;
    for row in client.query(TRACED, &[]).await.unwrap() {
        let (account, transaction): (String, String) = (row.get(0), row.get(3));
        let text = |at| String::from_utf8_lossy(row.get::<_, &[u8]>(at)).into_owned();
        let (op, row) = (op_in(&text(2)), text(1));
        journal.note(&account, Note::Committed { op, row, transaction });
    }
}
