//! Delivers the inbox's messages: in order within a room, several rooms concurrently, round-robin.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::{
    errors::BridgeError,
    evaluate::{Verdict, evaluate},
    inbox::Queued,
    message::{Message, Stored},
    retry::Delays,
    run::Run,
    scheduler::{Next, Scheduler},
    webhook::Outcome as PostOutcome,
};

/// Rooms that are served concurrently.
const CONCURRENT_ROOMS: usize = 4;
/// Messages delivered for one room before the next room is served.
const BATCH: i64 = 5;
/// A message is dead-lettered after this many rejections by the webhook.
const MAX_REJECTIONS: i32 = 5;
/// The circuit breaker opens when this many rooms fail without a success in between.
const BREAKER_THRESHOLD: usize = 4;
/// How often a room with pending but not yet due messages is rechecked: the end of a wait for a key
/// has no wakeup.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Circuit breaker: pauses all rooms while the webhook accepts nothing.
struct Breaker {
    /// The rooms that failed since the last success.
    failing: HashSet<String>,
    delays: Delays,
    open_until: Option<Instant>,
}

impl Breaker {
    fn new() -> Self {
        Self { failing: HashSet::new(), delays: Delays::new(), open_until: None }
    }

    /// Record a failure of this room. Returns the pause of all rooms if the breaker is open.
    fn failed(
        &mut self,
        room: &str,
        retry_after: Option<Duration>,
        for_all: bool,
    ) -> Option<Duration> {
        self.failing.insert(room.to_owned());
        if !for_all && self.failing.len() < BREAKER_THRESHOLD {
            return None;
        }
        let delay = self.delays.next(retry_after);
        self.open_until = Some(Instant::now() + delay);
        Some(delay)
    }
}

pub struct Delivery<'a> {
    run: &'a Run,
    /// The last decrypted event of each room, so that a retry is not counted again.
    counted: Mutex<HashMap<String, String>>,
    breaker: Mutex<Breaker>,
}

/// The outcome of one event.
enum Outcome {
    /// The room's next event may follow.
    Finished,
    /// The room's later events wait.
    Blocked(Next),
}

impl<'a> Delivery<'a> {
    pub fn new(run: &'a Run) -> Self {
        Self { run, counted: Mutex::default(), breaker: Mutex::new(Breaker::new()) }
    }

    /// Deliver until stopped.
    pub async fn run(&self) -> Result<(), BridgeError> {
        let scheduler = Scheduler {
            stop: &self.run.stop,
            wakeup: &self.run.wake.delivery,
            concurrency: CONCURRENT_ROOMS,
            delays: Delays::new,
        };
        let list = async || self.run.inbox.pending_rooms().await;
        scheduler.run(list, async |room: &str| self.deliver_batch(room).await).await
    }

    /// Deliver a batch of one room's due messages, in order.
    async fn deliver_batch(&self, room: &str) -> Result<Next, BridgeError> {
        let inbox = &self.run.inbox;
        let due = inbox.due(room, BATCH).await?;
        if due.is_empty() {
            let pending = inbox.has_pending(room).await?;
            return Ok(if pending { Next::AfterOrWakeup(RECHECK_INTERVAL) } else { Next::Done });
        }
        for queued in due {
            if self.run.stop.is_cancelled() {
                return Ok(Next::Done);
            }
            if queued.too_early {
                return Ok(Next::After(RECHECK_INTERVAL));
            }
            if let Some(delay) = self.breaker_delay() {
                return Ok(Next::After(delay));
            }
            if let Outcome::Blocked(next) = self.deliver(room, &queued).await? {
                return Ok(next);
            }
        }
        Ok(Next::Requeue)
    }

    async fn deliver(&self, room: &str, queued: &Queued) -> Result<Outcome, BridgeError> {
        let (inbox, metrics) = (&self.run.inbox, &self.run.metrics);
        let event_id = queued.event_id.as_str();
        match evaluate(self.run, room, queued).await? {
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
                info!(event_id, room, "the key of a message is missing: waiting for it");
                metrics.undecryptable("no_key");
                self.hold_for_key(room, queued).await?;
                // Reload the due events: the room's later ones may have to wait for the key, too.
                return Ok(Outcome::Blocked(Next::Requeue));
            }
            Verdict::SenderUnknown => {
                return Ok(Outcome::Blocked(Next::AfterOrWakeup(RECHECK_INTERVAL)));
            }
        }
        Ok(Outcome::Finished)
    }

    async fn post(&self, queued: &Queued, message: &Message) -> Result<Outcome, BridgeError> {
        let (inbox, metrics) = (&self.run.inbox, &self.run.metrics);
        match self.run.webhook.post(message).await {
            PostOutcome::Delivered => {
                inbox.delivered(&message.room_id, &queued.event_id).await?;
                metrics.delivered.inc();
                *self.breaker() = Breaker::new();
                debug!(event_id = queued.event_id, "delivered");
                Ok(Outcome::Finished)
            }
            PostOutcome::Unavailable { reason, retry_after, for_all } => {
                metrics.webhook_failures.inc();
                self.failed(&message.room_id, &reason, retry_after, for_all);
                Ok(Outcome::Blocked(Next::Backoff(retry_after)))
            }
            PostOutcome::Rejected(reason) => {
                metrics.webhook_failures.inc();
                self.rejected(&message.room_id, queued, &reason).await
            }
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the breaker stays open, if it is.
    fn breaker_delay(&self) -> Option<Duration> {
        let until = self.breaker().open_until?;
        Some(until.saturating_duration_since(Instant::now())).filter(|delay| !delay.is_zero())
    }

    fn failed(&self, room: &str, reason: &str, retry_after: Option<Duration>, for_all: bool) {
        let host = self.run.webhook.host();
        match self.breaker().failed(room, retry_after, for_all) {
            Some(delay) => {
                warn!(
                    "the webhook at {host} failed ({reason}); trying again in {} s",
                    delay.as_secs()
                );
            }
            None => warn!(room, "the webhook at {host} failed ({reason})"),
        }
    }

    /// Retry a rejected message a few times, then dead-letter it so that it blocks its room no longer.
    async fn rejected(
        &self,
        room: &str,
        queued: &Queued,
        reason: &str,
    ) -> Result<Outcome, BridgeError> {
        let (event_id, count) = (&queued.event_id, queued.rejections + 1);
        if count >= MAX_REJECTIONS {
            warn!(
                event_id,
                "the webhook rejected a message {count} times ({reason}): dead-lettered"
            );
            self.run
                .inbox
                .failed(room, event_id, &format!("the webhook responded with {reason}"))
                .await?;
            self.run.metrics.failed.inc();
            return Ok(Outcome::Finished);
        }
        let delay = Duration::from_secs(1 << queued.rejections.clamp(0, 6));
        warn!(
            event_id,
            "the webhook rejected a message ({reason}); trying again in {} s",
            delay.as_secs()
        );
        self.run.inbox.retry_in(room, event_id, delay).await?;
        Ok(Outcome::Blocked(Next::After(delay)))
    }

    fn count_decrypted(&self, room: &str, event_id: &str) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let last = counted.insert(room.to_owned(), event_id.to_owned());
        if last.as_deref() != Some(event_id) {
            self.run.metrics.decrypted.inc();
        }
    }

    /// Mark an event as waiting for its key. The key is checked again afterwards: if it arrived in
    /// between, its sync found no waiting event to release.
    async fn hold_for_key(&self, room: &str, queued: &Queued) -> Result<(), BridgeError> {
        self.run.inbox.wait_for_key(room, &queued.event_id).await?;
        if let (Ok(room_id), Ok(Stored::Encrypted(encrypted))) =
            (ruma::RoomId::parse(room), Stored::parse(&queued.json))
            && self.run.crypto.has_key(&encrypted.event, &room_id).await?
        {
            self.run.inbox.release(room, &queued.event_id).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failing_room_does_not_open_the_breaker() {
        let mut breaker = Breaker::new();
        for _ in 0..100 {
            assert_eq!(breaker.failed("!r:x", None, false), None);
        }
        assert!(breaker.open_until.is_none());
        assert_eq!(breaker.failed("!a:x", None, false), None);
        assert_eq!(breaker.failed("!b:x", None, false), None);
        assert!(breaker.failed("!c:x", None, false).is_some());
        assert!(Breaker::new().failed("!r:x", None, true).is_some(), "rate-limited");
    }
}
