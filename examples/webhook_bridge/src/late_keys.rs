//! Room keys that come late: fetched from the key backup, or imported into the store by another program.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tracing::info;

use crate::{backup, errors::BridgeError, inbox::WaitingSession, retry::Delays, run::Run};

/// How often the sessions of waiting messages are listed.
const INTERVAL: Duration = Duration::from_secs(2);
/// The longest pause between two attempts for the same session.
const MAX_PAUSE: Duration = Duration::from_secs(60 * 60);

/// When each missing session is looked for again.
#[derive(Default)]
struct Attempts(HashMap<String, (Instant, Delays)>);

impl Attempts {
    /// Whether it is time for an attempt, which is then counted.
    fn begin(&mut self, session: &str) -> bool {
        let new = || (Instant::now(), Delays::up_to(MAX_PAUSE));
        let (at, delays) = self.0.entry(session.to_owned()).or_insert_with(new);
        let due = *at <= Instant::now();
        if due {
            *at = Instant::now() + delays.next(None);
        }
        due
    }

    /// Forget sessions for which nothing waits any more.
    fn retain(&mut self, waiting: &[WaitingSession]) {
        let waiting: HashSet<_> = waiting.iter().map(|one| one.session_id.as_str()).collect();
        self.0.retain(|session, _| waiting.contains(session.as_str()));
    }
}

/// Look for the keys of waiting messages until stopped.
pub async fn run(run: &Run) -> Result<(), BridgeError> {
    let mut attempts = Attempts::default();
    while run.stop.run_until_cancelled(sleep(INTERVAL)).await.is_some() {
        let waiting = run.inbox.waiting_sessions().await?;
        attempts.retain(&waiting);
        let due = waiting.iter().filter(|one| attempts.begin(&one.session_id));
        for session in due {
            let look = look_for(run, session);
            run.stop.run_until_cancelled(look).await.unwrap_or(Ok(()))?;
        }
    }
    Ok(())
}

async fn look_for(run: &Run, waiting: &WaitingSession) -> Result<(), BridgeError> {
    let WaitingSession { room_id, session_id, .. } = waiting;
    let stored = run.crypto.has_session(room_id, session_id).await?;
    // Also a stored one: it may begin after the message, and that in the backup before it.
    if backup::fetch(run, room_id, session_id).await? {
        info!(room = room_id, session = session_id, "a missing room key was in the key backup");
    } else if !stored {
        return Ok(());
    }
    // It may still begin after the message, which then waits again.
    run.inbox.release_session(waiting).await?;
    run.wake.delivery.notify_one();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_for_a_session_are_spaced() {
        let mut attempts = Attempts::default();
        assert!(attempts.begin("a") && attempts.begin("b"));
        assert!(!attempts.begin("a"));
        let waiting = WaitingSession { room_id: "!r:x".to_owned(), session_id: "b".to_owned() };
        attempts.retain(&[waiting]);
        assert!(attempts.begin("a") && !attempts.begin("b"));
    }
}
