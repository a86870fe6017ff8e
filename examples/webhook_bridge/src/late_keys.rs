//! Room keys that come late: fetched from the key backup, or imported into the store by another program.

use std::{collections::HashMap, time::Duration};

use ruma::RoomId;
use tokio::time::{Instant, sleep};
use tracing::info;

use crate::{
    backup,
    errors::BridgeError,
    inbox::{SESSIONS, WaitingSession},
    message::Stored,
    retry::Delays,
    run::Run,
};

/// How often sessions of waiting messages are listed: a page of them.
const INTERVAL: Duration = Duration::from_secs(2);
/// The longest pause between two attempts for the same session.
const MAX_PAUSE: Duration = Duration::from_secs(60 * 60);

/// When each missing session, of a room, is looked for again.
#[derive(Default)]
struct Attempts(HashMap<(String, String), Attempt>);

struct Attempt {
    at: Instant,
    delays: Delays,
    /// It was listed in the current pass.
    waits: bool,
}

impl Attempts {
    /// Whether it is time for an attempt, which is then counted.
    fn begin(&mut self, room: &str, session: &str) -> bool {
        let new = || Attempt { at: Instant::now(), delays: Delays::up_to(MAX_PAUSE), waits: true };
        let attempt = self.0.entry((room.to_owned(), session.to_owned())).or_insert_with(new);
        attempt.waits = true;
        let due = attempt.at <= Instant::now();
        if due {
            attempt.at = Instant::now() + attempt.delays.next(None);
        }
        due
    }

    /// End a pass: forget sessions for which nothing waits any more.
    fn end_pass(&mut self) {
        self.0.retain(|_, attempt| std::mem::take(&mut attempt.waits));
    }
}

/// Look for the keys of waiting messages until stopped.
pub async fn run(run: &Run) -> Result<(), BridgeError> {
    let mut attempts = Attempts::default();
    let mut last = None;
    while run.stop.run_until_cancelled(sleep(INTERVAL)).await.is_some() {
        let waiting = run.inbox.waiting_sessions(last.as_ref()).await?;
        for session in &waiting {
            if !attempts.begin(&session.room_id, &session.session_id) {
                continue;
            }
            let look = look_for(run, session);
            run.stop.run_until_cancelled(look).await.unwrap_or(Ok(()))?;
        }
        // The next page, or again the first one.
        last = (waiting.len() == SESSIONS).then(|| waiting.last().cloned()).flatten();
        if last.is_none() {
            attempts.end_pass();
        }
    }
    Ok(())
}

async fn look_for(run: &Run, waiting: &WaitingSession) -> Result<(), BridgeError> {
    let WaitingSession { room_id, session_id, .. } = waiting;
    let stored = run.crypto.has_session(room_id, session_id).await?;
    // Also a stored one: it may begin after the message, and that in the backup before it.
    if backup::fetch(run, room_id, session_id).await? {
        info!(room = room_id, session = session_id, "a room key was fetched from the key backup");
    } else if !stored {
        return Ok(());
    }
    // It may still begin after the message, which then waits again.
    run.inbox.release_session(waiting).await?;
    run.wake.delivery.notify_one();
    Ok(())
}

/// Have the machine ask the user's other devices for the keys of waiting messages, of the newest sessions: it
/// asks when a message fails to be decrypted, once for each session, and these did when no other device was
/// verified. The messages stay as they are, so that no other one waits for this.
pub async fn ask_again(run: &Run) -> Result<(), BridgeError> {
    for session in run.inbox.waiting_sessions(None).await? {
        let Ok(room_id) = RoomId::parse(&session.room_id) else { continue };
        let event = run.inbox.waiting_event(&session).await?;
        let Some(Ok(Stored::Encrypted(encrypted))) = event.map(|event| Stored::parse(&event))
        else {
            continue;
        };
        run.crypto.decrypt(&encrypted.event, &room_id).await?;
    }
    run.wake.outgoing.notify_one();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_for_a_session_are_spaced() {
        let mut attempts = Attempts::default();
        assert!(attempts.begin("room", "a") && attempts.begin("room", "b"));
        assert!(!attempts.begin("room", "a"));
        attempts.end_pass();
        assert!(!attempts.begin("room", "b"));
        attempts.end_pass();
        assert!(attempts.begin("room", "a") && !attempts.begin("room", "b"));
        // The sender of a message chooses its session id.
        assert!(attempts.begin("another", "b"));
    }
}
