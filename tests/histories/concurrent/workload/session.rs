//! The work of an owner while it has the account: several tasks write and read at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{
    actor::Opened,
    outcome::{self, Failure},
    pause,
    registers::{self, REGISTERS, keys, traced_rows},
};
use crate::concurrent::history::{Note, Outcome, now};

/// Why the work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Over,
    /// The store has to be reopened.
    Failed,
    Superseded,
}

/// Requests all tasks to end, and says why.
#[derive(Default)]
struct Shared(AtomicU8);

impl Shared {
    fn end(&self, failure: &Failure) {
        let end = if failure.is_superseded() { End::Superseded } else { End::Failed };
        self.0.fetch_max(end as u8, SeqCst);
    }

    fn is_over(&self) -> bool {
        self.0.load(SeqCst) > 0
    }
}

pub async fn work(opened: &Opened, rng: &mut fastrand::Rng) -> End {
    let (shared, until) = (Arc::new(Shared::default()), hold(rng));
    let tasks = (0..5).map(|number| {
        let (opened, shared, mut rng) = (opened.clone(), shared.clone(), rng.fork());
        tokio::spawn(async move {
            while Instant::now() < until && !shared.is_over() && !opened.process.has_ended() {
                let done = match number {
                    0..3 => write(&opened, &mut rng).await,
                    _ => read(&opened, &mut rng).await,
                };
                // After a failed read the store has to be reopened, too.
                done.unwrap_or_else(|failure| shared.end(&failure));
                pause(&mut rng, 4).await;
            }
        })
    });
    join_all(tasks).await.into_iter().for_each(|ended| ended.unwrap());
    match shared.0.load(SeqCst) {
        0 => End::Over,
        1 => End::Failed,
        _ => End::Superseded,
    }
}

/// Chooses when the owner releases the account, unless another one takes it over earlier.
pub fn hold(rng: &mut fastrand::Rng) -> Instant {
    Instant::now() + Duration::from_millis(rng.u64(50..4000))
}

async fn write(opened: &Opened, rng: &mut fastrand::Rng) -> Result<(), Failure> {
    let (op, register) = (opened.process.name(""), *rng.choice(&REGISTERS).unwrap());
    let (opening, rows) = (opened.name.clone(), traced_rows(register));
    let atomically = register.starts_with("pair");
    let (name, register_name) = (op.clone(), register.to_owned());
    let note = Note::Write { op: name, opening, register: register_name, rows, atomically };
    opened.note(note);
    let write = write_register(opened, register, &op, rng.fork());
    let limit = match rng.u32(0..12) {
        0 => Duration::from_micros(rng.u64(0..4000)),
        _ => Duration::from_secs(60),
    };
    let result = timeout(limit, write).await;
    let outcome = result.as_ref().map_or(Outcome::Dropped, outcome::of);
    opened.note(Note::Written { op, outcome });
    result.unwrap_or(Ok(()))
}

async fn write_register(
    opened: &Opened,
    register: &str,
    op: &str,
    mut rng: fastrand::Rng,
) -> Result<(), Failure> {
    let store = &opened.store;
    match keys(register) {
        [key] => registers::set(store, register, key, op).await,
        ["a", "b"] => {
            let both = async {
                for key in ["a", "b"] {
                    registers::set(store, register, key, op).await?;
                    if rng.u32(0..4) == 0 {
                        // The read sends the saves so far, and must return the last of them.
                        let found = registers::read(store, register, key).await?;
                        if found.as_deref() != Some(op) {
                            return Err(Failure::Wrong(format!("{op}, read within: {found:?}")));
                        }
                    }
                    if rng.u32(0..4) == 0 {
                        pause(&mut rng, 5).await;
                    }
                }
                if rng.u32(0..30) == 0 { Err(Failure::OnPurpose) } else { Ok(()) }
            };
            store.atomically(both).await
        }
        _ => registers::save(store, register, op).await,
    }
}

async fn read(opened: &Opened, rng: &mut fastrand::Rng) -> Result<(), Failure> {
    let register = *rng.choice(&REGISTERS).unwrap();
    let (key, begun) = (*rng.choice(keys(register)).unwrap(), now());
    let value = registers::read(&opened.store, register, key).await;
    let value = value.inspect_err(|failure| opened.note_failure(failure))?;
    let (register, key) = (register.to_owned(), key.to_owned());
    opened.note(Note::Read { begun, opening: Some(opened.name.clone()), register, key, value });
    Ok(())
}
