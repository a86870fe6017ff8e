//! Readers next to the owners: read-only stores, which have no cache.

use std::sync::Arc;

use matrix_sdk_postgres::{Access, PostgresCryptoStore};

use super::{
    Process,
    outcome::Failure,
    pause,
    registers::{self, REGISTERS, keys},
};
use crate::concurrent::history::{Note, now};

pub async fn run(process: Arc<Process>, account: &'static str, mut rng: fastrand::Rng) {
    while !process.has_ended() {
        if let Err(failure) = read_until_failure(&process, account, &mut rng).await {
            let note = Note::Failed { opening: None, outcome: failure.outcome() };
            process.journal.note(account, note);
            pause(&mut rng, 50).await;
        }
    }
}

/// Reads until a read fails or the process is to end.
async fn read_until_failure(
    process: &Process,
    account: &str,
    rng: &mut fastrand::Rng,
) -> Result<(), Failure> {
    let config = process.config(account, String::new(), rng).access(Access::ReadOnly);
    let store = PostgresCryptoStore::open_with_config(&config).await?;
    while !process.has_ended() {
        let register = *rng.choice(&REGISTERS).unwrap();
        // All keys of the register, one after another, which reveals a transaction that is visible in part.
        let mut keys = keys(register).to_vec();
        rng.shuffle(&mut keys);
        for key in keys {
            let note = read(&store, register, key).await?;
            process.journal.note(account, note);
        }
        pause(rng, 10).await;
    }
    Ok(())
}

/// Performs one read; returns its note.
pub async fn read(store: &PostgresCryptoStore, register: &str, key: &str) -> Result<Note, Failure> {
    let begun = now();
    let value = registers::read(store, register, key).await?;
    let (register, key) = (register.to_owned(), key.to_owned());
    Ok(Note::Read { begun, opening: None, register, key, value })
}
