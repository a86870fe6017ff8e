//! Delivers what the inbox holds: in order in each room, several rooms at once, in turn.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::{
    errors::BridgeError,
    inbox::Queued,
    judge::{Verdict, judge},
    message::{Message, Stored},
    retry::Delays,
    run::Run,
    turns::{Next, Turns},
    webhook::Answer,
};

/// Rooms that are served at once.
const ROOMS: usize = 4;
/// So many messages of a room, then it is another's turn.
const BATCH: i64 = 5;
/// A message that the webhook refuses so often is parked.
const MAX_REJECTIONS: i32 = 5;
/// When so many rooms fail, and none gets through, it is not the rooms: all wait.
const DOWN: usize = 4;
/// How often a room is looked at that has something to deliver which is not due. Most of what it
/// waits for is news; the end of a wait for a key is not.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Whether the webhook takes anything at all.
struct Breaker {
    /// The rooms that failed since something got through.
    failing: HashSet<String>,
    delays: Delays,
    rests_until: Option<Instant>,
}

impl Breaker {
    fn new() -> Self {
        Self { failing: HashSet::new(), delays: Delays::new(), rests_until: None }
    }

    /// Nothing got through for this room. Returns for how long all wait, if they do.
    fn failed(&mut self, room: &str, wish: Option<Duration>, for_all: bool) -> Option<Duration> {
        self.failing.insert(room.to_owned());
        if !for_all && self.failing.len() < DOWN {
            return None;
        }
        let delay = self.delays.next(wish);
        self.rests_until = Some(Instant::now() + delay);
        Some(delay)
    }
}

pub struct Delivery<'a> {
    run: &'a Run,
    /// The last event decrypted in each room, so that a retry is not counted again.
    counted: Mutex<HashMap<String, String>>,
    breaker: Mutex<Breaker>,
}

/// What became of one event.
enum Outcome {
    /// The next of its room may follow.
    Gone,
    /// Its room waits.
    Waits(Next),
}

impl<'a> Delivery<'a> {
    pub fn new(run: &'a Run) -> Self {
        Self { run, counted: Mutex::default(), breaker: Mutex::new(Breaker::new()) }
    }

    /// Deliver until stopped.
    pub async fn run(&self) -> Result<(), BridgeError> {
        let turns = Turns {
            stop: &self.run.stop,
            news: &self.run.wake.delivery,
            at_once: ROOMS,
            delays: Delays::new,
        };
        let list = async || self.run.inbox.pending_rooms().await;
        turns.run(list, async |room: &str| self.serve(room).await).await
    }

    /// Deliver a few messages that are due in one room, in its order.
    async fn serve(&self, room: &str) -> Result<Next, BridgeError> {
        let inbox = &self.run.inbox;
        let due = inbox.due(room, BATCH).await?;
        if due.is_empty() {
            let pending = inbox.has_pending(room).await?;
            return Ok(if pending { Next::News(LOOK_AGAIN) } else { Next::Done });
        }
        for queued in due {
            if self.run.stop.is_cancelled() {
                return Ok(Next::Done);
            }
            if queued.too_early {
                return Ok(Next::After(LOOK_AGAIN));
            }
            if let Some(rest) = self.rest() {
                return Ok(Next::After(rest));
            }
            if let Outcome::Waits(next) = self.one(room, &queued).await? {
                return Ok(next);
            }
        }
        Ok(Next::Again)
    }

    async fn one(&self, room: &str, queued: &Queued) -> Result<Outcome, BridgeError> {
        let (inbox, metrics) = (&self.run.inbox, &self.run.metrics);
        let event_id = queued.event_id.as_str();
        match judge(self.run, room, queued).await? {
            Verdict::Deliver(message) => {
                if message.encrypted {
                    self.count_decrypted(room, event_id);
                }
                return self.post(queued, &message).await;
            }
            Verdict::Skip => inbox.delivered(room, event_id).await?,
            Verdict::Fail { kind, reason } => {
                warn!(event_id, room, "not delivered: {reason}");
                inbox.failed(room, event_id, &reason).await?;
                metrics.failed.inc();
                metrics.undecryptable(kind);
            }
            Verdict::NoKey => {
                info!(event_id, room, "waiting for the key of a message");
                metrics.undecryptable("no_key");
                self.put_to_wait(room, queued).await?;
                // What follows may have to wait a moment, too: look again.
                return Ok(Outcome::Waits(Next::Again));
            }
            Verdict::SenderUnknown => return Ok(Outcome::Waits(Next::News(LOOK_AGAIN))),
        }
        Ok(Outcome::Gone)
    }

    async fn post(&self, queued: &Queued, message: &Message) -> Result<Outcome, BridgeError> {
        let (inbox, metrics) = (&self.run.inbox, &self.run.metrics);
        match self.run.webhook.post(message).await {
            Answer::Delivered => {
                inbox.delivered(&message.room_id, &queued.event_id).await?;
                metrics.delivered.inc();
                *self.breaker() = Breaker::new();
                debug!(event_id = queued.event_id, "delivered");
                Ok(Outcome::Gone)
            }
            Answer::Unavailable { reason, wish, for_all } => {
                metrics.webhook_failures.inc();
                self.failed(&message.room_id, &reason, wish, for_all);
                Ok(Outcome::Waits(Next::Later(wish)))
            }
            Answer::Rejected(reason) => {
                metrics.webhook_failures.inc();
                self.rejected(&message.room_id, queued, &reason).await
            }
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For how long nothing is sent.
    fn rest(&self) -> Option<Duration> {
        let until = self.breaker().rests_until?;
        Some(until.saturating_duration_since(Instant::now())).filter(|rest| !rest.is_zero())
    }

    fn failed(&self, room: &str, reason: &str, wish: Option<Duration>, for_all: bool) {
        let host = self.run.webhook.host();
        match self.breaker().failed(room, wish, for_all) {
            Some(rest) => {
                warn!("the webhook at {host} failed ({reason}); again in {} s", rest.as_secs());
            }
            None => warn!(room, "the webhook at {host} failed ({reason})"),
        }
    }

    /// The webhook refused this message: tried again a few times, then parked so that others may pass.
    async fn rejected(
        &self,
        room: &str,
        queued: &Queued,
        reason: &str,
    ) -> Result<Outcome, BridgeError> {
        let (event_id, count) = (&queued.event_id, queued.rejections + 1);
        if count >= MAX_REJECTIONS {
            warn!(event_id, "the webhook refused a message {count} times ({reason}): parked");
            self.run
                .inbox
                .failed(room, event_id, &format!("the webhook answered {reason}"))
                .await?;
            self.run.metrics.failed.inc();
            return Ok(Outcome::Gone);
        }
        let delay = Duration::from_secs(1 << queued.rejections.clamp(0, 6));
        warn!(event_id, "the webhook refused a message ({reason}); again in {} s", delay.as_secs());
        self.run.inbox.retry_in(room, event_id, delay).await?;
        Ok(Outcome::Waits(Next::After(delay)))
    }

    fn count_decrypted(&self, room: &str, event_id: &str) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let last = counted.insert(room.to_owned(), event_id.to_owned());
        if last.as_deref() != Some(event_id) {
            self.run.metrics.decrypted.inc();
        }
    }

    /// Its key may come between our look and our note: then nobody would wake it. Look again.
    async fn put_to_wait(&self, room: &str, queued: &Queued) -> Result<(), BridgeError> {
        self.run.inbox.wait_for_key(room, &queued.event_id).await?;
        if let (Ok(room_id), Ok(Stored::Encrypted(encrypted))) =
            (ruma::RoomId::parse(room), Stored::parse(&queued.json))
            && self.run.crypto.has_key(&encrypted.event, &room_id).await?
        {
            self.run.inbox.wait_no_longer(room, &queued.event_id).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_that_fails_again_and_again_holds_up_no_other() {
        let mut breaker = Breaker::new();
        for _ in 0..100 {
            assert_eq!(breaker.failed("!r:x", None, false), None);
        }
        assert!(breaker.rests_until.is_none());
        assert_eq!(breaker.failed("!a:x", None, false), None);
        assert_eq!(breaker.failed("!b:x", None, false), None);
        assert!(breaker.failed("!c:x", None, false).is_some());
        assert!(Breaker::new().failed("!r:x", None, true).is_some(), "it was asked too often");
    }
}
