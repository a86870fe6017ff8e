//! Delivers the inbox's messages: in order within a room, several rooms concurrently, round-robin.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use crate::{
    api,
    breaker::Breakers,
    config::Attachments,
    errors::BridgeError,
    evaluate::{Verdict, evaluate},
    inbox::{MAX_REJECTIONS, Origin, Queued},
    message::{Message, Stored},
    retry::Delays,
    run::Run,
    scheduler::{Next, Scheduler},
    webhook::{Outcome as PostOutcome, Webhook},
};

/// Rooms that are served concurrently.
const CONCURRENT_ROOMS: usize = 4;
/// Messages delivered for one room before the next room is served.
const BATCH: i64 = 5;
/// How long the first message of a new room waits for the room's members, from which its label follows.
const LABEL_GRACE: Duration = Duration::from_secs(60);
/// How long deliveries wait for the first sync of a run.
const FIRST_SYNC_GRACE: Duration = Duration::from_secs(30);
/// How often a room with pending but not yet due messages is rechecked: the end of a wait for a key
/// has no wakeup.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

pub struct Delivery<'a> {
    run: &'a Run,
    /// The last decrypted event of each room, so that a retry is not counted again.
    counted: Mutex<HashMap<String, String>>,
    breakers: Breakers,
    /// The event of each room whose last request failed or was rejected.
    failing: Mutex<HashMap<String, String>>,
}

/// A room, with the label that it has so far.
struct Room<'a> {
    id: &'a str,
    label: Option<String>,
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
        Self {
            run,
            counted: Mutex::default(),
            breakers: Breakers::default(),
            failing: Mutex::default(),
        }
    }

    /// Deliver until stopped. Not before the first sync, which tells what was redacted meanwhile.
    pub async fn run(&self) -> Result<(), BridgeError> {
        let first = timeout(FIRST_SYNC_GRACE, self.run.synced.cancelled());
        self.run.stop.run_until_cancelled(first).await;
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
        let (label, unsure) = self.label(room).await?;
        if unsure && due.first().is_some_and(|queued| queued.age < LABEL_GRACE) {
            return Ok(Next::AfterOrWakeup(RECHECK_INTERVAL));
        }
        let mut room = Room { id: room, label };
        for queued in due {
            if self.run.stop.is_cancelled() {
                return Ok(Next::Done);
            }
            if queued.too_early {
                return Ok(Next::After(RECHECK_INTERVAL));
            }
            let webhook = self.run.webhooks.of(room.label.as_deref());
            if let Some(delay) = self.breakers.pause(&webhook.name) {
                return Ok(Next::After(delay));
            }
            if let Outcome::Blocked(next) = self.deliver(&mut room, &queued).await? {
                return Ok(next);
            }
        }
        Ok(Next::Requeue)
    }

    /// A room's label, and whether it may get one as soon as its members are known.
    async fn label(&self, room: &str) -> Result<(Option<String>, bool), BridgeError> {
        let labels = &self.run.config.labels;
        if labels.is_empty() {
            return Ok((None, false));
        }
        let (origin, members_known) = self.run.inbox.origin(room).await?;
        let label = labels.of(room, &origin).map(ToOwned::to_owned);
        let unsure = label.is_none() && labels.use_members() && !members_known;
        Ok((label, unsure))
    }

    /// Label a room by the sender of a message, who may have joined since the members were fetched.
    async fn label_by_sender(&self, room: &mut Room<'_>, sender: &str) -> Result<(), BridgeError> {
        let labels = &self.run.config.labels;
        if room.label.is_none() && labels.of_ghost(sender).is_some() {
            self.run.inbox.record_ghost(room.id, sender).await?;
            let origin = Origin { ghost: Some(sender.to_owned()), ..Origin::default() };
            room.label = labels.of(room.id, &origin).map(ToOwned::to_owned);
        }
        Ok(())
    }

    async fn deliver(&self, room: &mut Room<'_>, queued: &Queued) -> Result<Outcome, BridgeError> {
        let (inbox, metrics) = (&self.run.inbox, &self.run.metrics);
        let room_id = room.id;
        let event_id = queued.event_id.as_str();
        match evaluate(self.run, room_id, queued).await? {
            Verdict::Deliver(mut message) => {
                if message.encrypted {
                    self.count_decrypted(room_id, event_id);
                }
                if message.kind == "m.reaction" && !self.run.config.reactions {
                    inbox.delivered(room_id, event_id).await?;
                    return Ok(Outcome::Finished);
                }
                self.label_by_sender(room, &message.sender).await?;
                message.label.clone_from(&room.label);
                self.describe_attachment(&mut message)?;
                self.keep_for_api(queued, &message).await?;
                return self.post(queued, &message).await;
            }
            Verdict::Skip => inbox.delivered(room_id, event_id).await?,
            Verdict::Fail { kind, reason } => {
                warn!(event_id, room = room_id, "not delivered: {reason}");
                inbox.failed(room_id, event_id, &reason).await?;
                metrics.failed.increment(1);
                metrics.undecryptable(kind);
            }
            Verdict::NoKey => {
                if !queued.waited {
                    info!(
                        event_id,
                        room = room_id,
                        "the key of a message is missing: waiting for it"
                    );
                    metrics.undecryptable("no_key");
                }
                let released = self.hold_for_key(room_id, queued).await?;
                if released || inbox.is_held(queued) {
                    // Reload the due events: the room's later ones may have to wait for the key, too.
                    return Ok(Outcome::Blocked(Next::Requeue));
                }
            }
            Verdict::SenderUnknown => {
                return Ok(Outcome::Blocked(Next::AfterOrWakeup(RECHECK_INTERVAL)));
            }
        }
        Ok(Outcome::Finished)
    }

    fn describe_attachment(&self, message: &mut Message) -> Result<(), BridgeError> {
        let setting = self.run.config.attachments;
        let source = message.describe_attachment(setting == Attachments::Keys);
        if let (Attachments::Download, Some(sealer), Some(source), Some(attachment)) =
            (setting, &self.run.sealer, source, &mut message.attachment)
        {
            attachment.path = Some(api::path(sealer, &source)?);
        }
        Ok(())
    }

    /// Store the message for the API, if that is on. Not again when a delivery is repeated: the message may
    /// have been pruned since.
    async fn keep_for_api(&self, queued: &Queued, message: &Message) -> Result<(), BridgeError> {
        let (Some(sealer), Some(api)) = (&self.run.sealer, &self.run.config.api) else {
            return Ok(());
        };
        if queued.sealed {
            return Ok(());
        }
        self.run.inbox.store_sealed(message, &sealer.seal(message)?, api.max_messages).await
    }

    async fn post(&self, queued: &Queued, message: &Message) -> Result<Outcome, BridgeError> {
        let (inbox, metrics) = (&self.run.inbox, &self.run.metrics);
        let webhook = self.run.webhooks.of(message.label.as_deref());
        if self.failing().get(&message.room_id) == Some(&queued.event_id) {
            metrics.retried.increment(1);
        }
        let began = Instant::now();
        let outcome = webhook.post(message).await;
        if outcome != PostOutcome::LeftOut {
            metrics.delivery.record(began.elapsed());
        }
        match outcome {
            PostOutcome::Delivered | PostOutcome::LeftOut => {
                self.failing().remove(&message.room_id)
            }
            _ => self.failing().insert(message.room_id.clone(), queued.event_id.clone()),
        };
        match outcome {
            PostOutcome::Delivered => {
                inbox.delivered(&message.room_id, &queued.event_id).await?;
                metrics.delivered.increment(1);
                self.breakers.succeeded(&webhook.name);
                debug!(event_id = queued.event_id, "delivered");
                Ok(Outcome::Finished)
            }
            PostOutcome::LeftOut => {
                inbox.delivered(&message.room_id, &queued.event_id).await?;
                Ok(Outcome::Finished)
            }
            PostOutcome::Unavailable { reason, retry_after, for_all } => {
                metrics.webhook_failures.increment(1);
                self.failed(webhook, &message.room_id, &reason, retry_after, for_all);
                Ok(Outcome::Blocked(Next::Backoff(retry_after)))
            }
            PostOutcome::Rejected(reason) => {
                metrics.webhook_failures.increment(1);
                self.rejected(&message.room_id, queued, &reason).await
            }
        }
    }

    fn failing(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(
        &self,
        webhook: &Webhook,
        room: &str,
        reason: &str,
        retry_after: Option<Duration>,
        for_all: bool,
    ) {
        let host = webhook.host();
        match self.breakers.failed(&webhook.name, room, retry_after, for_all) {
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
            warn!(event_id, "a message was rejected {count} times ({reason}): dead-lettered");
            self.run.inbox.failed(room, event_id, &format!("rejected: {reason}")).await?;
            self.run.metrics.failed.increment(1);
            return Ok(Outcome::Finished);
        }
        let delay = Duration::from_secs(1 << queued.rejections.clamp(0, 6));
        warn!(event_id, "a message was rejected ({reason}); trying again in {} s", delay.as_secs());
        self.run.inbox.retry_in(room, event_id, delay).await?;
        Ok(Outcome::Blocked(Next::After(delay)))
    }

    fn count_decrypted(&self, room: &str, event_id: &str) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let last = counted.insert(room.to_owned(), event_id.to_owned());
        if last.as_deref() != Some(event_id) {
            self.run.metrics.decrypted.increment(1);
        }
    }

    /// Mark an event as waiting for its key. The key is checked again afterwards: if it arrived in
    /// between, its sync found no waiting event to release. Returns whether it did.
    async fn hold_for_key(&self, room: &str, queued: &Queued) -> Result<bool, BridgeError> {
        self.run.inbox.wait_for_key(room, &queued.event_id).await?;
        if let (Ok(room_id), Ok(Stored::Encrypted(encrypted))) =
            (ruma::RoomId::parse(room), Stored::parse(&queued.json))
            && self.run.crypto.has_key(&encrypted.event, &room_id).await?
        {
            self.run.inbox.release(room, &queued.event_id).await?;
            return Ok(true);
        }
        Ok(false)
    }
}
