//! Reads the database before and after a round.

use matrix_sdk_crypto::store::CryptoStore;
use test_support::{Mode, connect, eventually, number};

use crate::concurrent::{
    history::{Journal, Note},
    workload::{
        ACCOUNTS, MACHINE, create_machine, readers,
        registers::{REGISTERS, decode, keys},
    },
};

/// Triggers that record, in each transaction, the rows it writes, and each change of the owner.
const TRACES: &str = "
CREATE TABLE traces (number bigint GENERATED ALWAYS AS IDENTITY, account bigint, row text,
  value text, xid xid8 DEFAULT pg_current_xact_id());
CREATE FUNCTION trace() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF tg_table_name = 'custom_values' THEN
    INSERT INTO public.traces (account, row, value)
      VALUES (new.account_id, encode(new.key, 'escape'), encode(new.data, 'escape'));
  ELSIF tg_table_name = 'message_hashes' THEN
    INSERT INTO public.traces (account, row, value)
      VALUES (new.account_id, tg_table_name, encode(new.hash, 'escape'));
  ELSE
    INSERT INTO public.traces (account, row, value)
      VALUES (new.account_id, tg_table_name, new::text);
  END IF;
  RETURN new; END $$;
CREATE TRIGGER trace AFTER INSERT OR UPDATE ON matrix_sdk.custom_values
  FOR EACH ROW EXECUTE FUNCTION trace();
CREATE TRIGGER trace AFTER INSERT OR UPDATE ON matrix_sdk.message_hashes
  FOR EACH ROW EXECUTE FUNCTION trace();
CREATE TRIGGER trace AFTER INSERT OR UPDATE ON matrix_sdk.account_owners
  FOR EACH ROW EXECUTE FUNCTION trace();";

const TRACED: &str = "
SELECT a.name, t.number, t.row, t.value, t.xid::text
FROM traces t JOIN matrix_sdk.accounts a ON a.id = t.account";

const OTHERS: &str = "
SELECT count(*) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND datname = current_database() AND pid <> pg_backend_pid()";

/// Creates the accounts and the triggers.
pub async fn prepare(url: &str, journal: &Journal) {
    for account in ACCOUNTS {
        Mode::Plain.open(url, account).await.close().await.unwrap();
    }
    create_machine(Mode::Plain.open(url, MACHINE).await).await;
    connect(url).await.batch_execute(TRACES).await.unwrap();
    count(url, journal).await;
}

async fn count(url: &str, journal: &Journal) {
    for account in ACCOUNTS {
        let commits = Mode::Plain.open_read_only(url, account).await.commit_count().await.unwrap();
        journal.note(account, Note::Count { commits });
    }
}

/// Waits until all other sessions have ended, then notes the contents of the database.
pub async fn record(url: &str, journal: &Journal) {
    let client = connect(url).await;
    eventually("all other sessions have ended", || async { number(&client, OTHERS).await == 0 })
        .await;
    for account in ACCOUNTS {
        let store = Mode::Plain.open_read_only(url, account).await;
        for register in REGISTERS {
            for key in keys(register) {
                journal.note(account, readers::read(&store, register, key).await.unwrap());
            }
        }
    }
    count(url, journal).await;
    for found in client.query(TRACED, &[]).await.unwrap() {
        let (account, number, row): (String, i64, String) =
            (found.get(0), found.get(1), found.get(2));
        let (name, transaction) = (decode(found.get(3)), found.get(4));
        let note = match row.as_str() {
            "account_owners" => Note::Owned { number, opening: name },
            _ => Note::Committed { number, op: name, row, transaction },
        };
        journal.note(&account, note);
    }
}
