//! Room keys that come late: fetched from the key backup, imported into the store by another program, or
//! forwarded by another device of the bot's user, which is asked for them again.

use std::{collections::HashMap, time::Duration};

use matrix_sdk_crypto::types::requests::OutgoingRequest;
use ruma::RoomId;
use tokio::time::{Instant, sleep};
use tracing::info;

use crate::{
    backup,
    errors::BridgeError,
    inbox::{SESSIONS, WaitingSession},
    message::Stored,
    outgoing,
    retry::Delays,
    run::Run,
};

/// How often sessions of waiting messages are listed: a page of them.
const INTERVAL: Duration = Duration::from_secs(2);
/// The longest pause between two look-ups of the same session.
const MAX_LOOK_UP_PAUSE: Duration = Duration::from_secs(60 * 60);
/// The shortest and the longest pause between two requests for the same session. Requests to a device that is
/// offline pile up on the homeserver.
const REQUEST_PAUSES: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(24 * 60 * 60)];
/// Requests of one page.
const REQUESTS: usize = 20;
/// The pause after a request that failed, unless the homeserver asks for another.
const FAILED_PAUSE: Duration = Duration::from_secs(60);

/// What is done for a session again and again, at growing intervals.
struct Repeated {
    at: Instant,
    delays: Delays,
}

impl Repeated {
    /// Whether it is time, which is then counted as done.
    fn begin(&mut self) -> bool {
        let due = self.at <= Instant::now();
        if due {
            self.at = Instant::now() + self.delays.next(None);
        }
        due
    }
}

/// What is done for a missing session.
struct Attempts {
    look_up: Repeated,
    request: Repeated,
    /// It was listed in the current pass.
    waits: bool,
}

impl Attempts {
    fn new() -> Self {
        let now = Instant::now();
        let look_up = Repeated { at: now, delays: Delays::up_to(MAX_LOOK_UP_PAUSE) };
        // The machine has just made the first request, or none, because no other device is verified.
        let [shortest, longest] = REQUEST_PAUSES;
        let mut delays = Delays::between(shortest, longest);
        let request = Repeated { at: now + delays.next(None), delays };
        Self { look_up, request, waits: true }
    }
}

/// The missing sessions, of each room.
#[derive(Default)]
struct Missing(HashMap<(String, String), Attempts>);

impl Missing {
    fn attempts(&mut self, session: &WaitingSession) -> &mut Attempts {
        let key = (session.room_id.clone(), session.session_id.clone());
        let attempts = self.0.entry(key).or_insert_with(Attempts::new);
        attempts.waits = true;
        attempts
    }

    /// End a pass: forget sessions for which nothing waits any more.
    fn end_pass(&mut self) {
        self.0.retain(|_, attempts| std::mem::take(&mut attempts.waits));
    }
}

/// Look for the keys of waiting messages until stopped.
pub async fn run(run: &Run) -> Result<(), BridgeError> {
    let mut missing = Missing::default();
    let mut last = None;
    let mut requests_from = Instant::now();
    while run.stop.run_until_cancelled(sleep(INTERVAL)).await.is_some() {
        let waiting = run.inbox.waiting_sessions(last.as_ref()).await?;
        let attempt = async {
            for session in &waiting {
                if missing.attempts(session).look_up.begin() {
                    look_up(run, session).await?;
                }
            }
            if requests_from <= Instant::now()
                && let Some(pause) = request(run, &waiting, &mut missing).await?
            {
                requests_from = Instant::now() + pause;
            }
            Ok::<_, BridgeError>(())
        };
        run.stop.run_until_cancelled(attempt).await.unwrap_or(Ok(()))?;
        // The next page, or again the first one.
        last = (waiting.len() == SESSIONS).then(|| waiting.last().cloned()).flatten();
        if last.is_none() {
            missing.end_pass();
        }
    }
    Ok(())
}

async fn look_up(run: &Run, waiting: &WaitingSession) -> Result<(), BridgeError> {
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

/// Ask the user's other devices for keys, if one of them is verified: others do not answer. The machine asks
/// once, when a message fails to be decrypted. A device that gets the request together with the key, as after
/// an absence, or before it knows this device, refuses it and does not come back to it. Returns for how long no
/// other one is to be made, if one failed.
async fn request(
    run: &Run,
    waiting: &[WaitingSession],
    missing: &mut Missing,
) -> Result<Option<Duration>, BridgeError> {
    if waiting.is_empty() || !run.crypto.is_another_device_verified().await? {
        return Ok(None);
    }
    let due = waiting.iter().filter(|session| missing.attempts(session).request.begin());
    for session in due.take(REQUESTS) {
        for message in key_request(run, session).await? {
            if let Some(retry_after) = outgoing::repeat_to_device(run, &message).await? {
                return Ok(Some(retry_after.unwrap_or(FAILED_PAUSE)));
            }
        }
    }
    Ok(None)
}

/// The request for a session's key, behind the cancellation of the former one.
async fn key_request(
    run: &Run,
    waiting: &WaitingSession,
) -> Result<Vec<OutgoingRequest>, BridgeError> {
    let event = run.inbox.waiting_event(waiting).await?;
    let (Ok(room_id), Some(Ok(Stored::Encrypted(encrypted)))) =
        (RoomId::parse(&waiting.room_id), event.map(|event| Stored::parse(&event)))
    else {
        return Ok(Vec::new());
    };
    run.crypto.key_request(&encrypted.event, &room_id).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(room: &str, session: &str) -> WaitingSession {
        WaitingSession { room_id: room.to_owned(), session_id: session.to_owned(), position: 0 }
    }

    #[test]
    fn attempts_for_a_session_are_spaced() {
        let mut missing = Missing::default();
        let begin = |missing: &mut Missing, room: &str, session: &str| {
            missing.attempts(&waiting(room, session)).look_up.begin()
        };
        assert!(begin(&mut missing, "room", "a") && begin(&mut missing, "room", "b"));
        assert!(!begin(&mut missing, "room", "a"));
        missing.end_pass();
        assert!(!begin(&mut missing, "room", "b"));
        missing.end_pass();
        assert!(begin(&mut missing, "room", "a") && !begin(&mut missing, "room", "b"));
        // The sender of a message chooses its session id.
        assert!(begin(&mut missing, "another", "b"));
    }

    #[test]
    fn the_machines_own_request_is_the_first() {
        assert!(!Attempts::new().request.begin());
    }
}
