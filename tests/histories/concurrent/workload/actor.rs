//! A task that opens an account as its owner, again and again.

use std::{sync::Arc, time::Duration};

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::PostgresCryptoStore;
use tokio::time::timeout;

use super::{
    MACHINE, Process, machines,
    outcome::{self, Failure},
    pause, registers,
    session::{self, End},
};
use crate::concurrent::history::{Note, Outcome};

/// An open account.
#[derive(Clone)]
pub struct Opened {
    pub process: Arc<Process>,
    pub account: &'static str,
    pub store: PostgresCryptoStore,
    /// The opening's name.
    pub name: String,
}

impl Opened {
    pub fn note(&self, note: Note) {
        self.process.journal.note(self.account, note);
    }

    pub fn note_failure(&self, failure: &Failure) {
        let (opening, outcome) = (Some(self.name.clone()), failure.outcome());
        self.note(Note::Failed { opening, outcome });
    }
}

pub async fn run(process: Arc<Process>, account: &'static str, mut rng: fastrand::Rng) {
    while !process.has_ended() {
        let milliseconds = if rng.u32(0..4) == 0 { 100 } else { 3000 };
        pause(&mut rng, milliseconds).await;
        let Some(mut opened) = open(&process, account, &mut rng).await else { continue };
        loop {
            let end = match account {
                MACHINE => machines::work(&opened, &mut rng).await,
                _ => session::work(&opened, &mut rng).await,
            };
            let again = end == End::Failed && rng.u32(0..4) > 0 && !process.has_ended();
            if !(again && reopen(&mut opened).await) {
                break;
            }
        }
        // Otherwise the store is dropped, with operations in flight.
        if rng.bool() {
            let _ = timeout(Duration::from_secs(10), opened.store.close()).await;
        }
    }
}

async fn open(
    process: &Arc<Process>,
    account: &'static str,
    rng: &mut fastrand::Rng,
) -> Option<Opened> {
    let (process, name) = (process.clone(), process.name("o"));
    let config = process.config(account, registers::encode(&name), rng);
    let note = |note| process.journal.note(account, note);
    note(Note::Claim { opening: name.clone(), former: None });
    // Some are abandoned soon, with messages in flight.
    let limit = match rng.u32(0..10) {
        0 => Duration::from_millis(rng.u64(0..50)),
        1 => Duration::from_millis(rng.u64(0..1000)),
        _ => Duration::from_secs(30),
    };
    let opened = timeout(limit, PostgresCryptoStore::open_with_config(&config)).await;
    let opened = opened.map(|opened| opened.map_err(Failure::from));
    let outcome = opened.as_ref().map_or(Outcome::Dropped, outcome::of);
    note(Note::Claimed { opening: name.clone(), outcome });
    let store = opened.ok()?.ok()?;
    Some(Opened { process, account, store, name })
}

/// Fails if another opening has taken the account over.
async fn reopen(opened: &mut Opened) -> bool {
    let (former, name) = (opened.name.clone(), opened.process.name("o"));
    opened.note(Note::Claim { opening: name.clone(), former: Some(former) });
    let result = opened.store.reopen().await.map_err(Failure::from);
    opened.note(Note::Claimed { opening: name.clone(), outcome: outcome::of(&result) });
    opened.name = name;
    result.is_ok()
}
