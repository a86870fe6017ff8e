//! Decrypts and delivers what the inbox holds: in order in each room, several rooms at once.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use matrix_sdk_common::deserialized_responses::UnableToDecryptReason;
use matrix_sdk_crypto::{
    RoomEventDecryptionResult, types::events::room::encrypted::EncryptedEvent,
};
use ruma::{RoomId, serde::Raw};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::{
    errors::BridgeError,
    inbox::Queued,
    message::{Message, Stored, verification},
    retry::Delays,
    run::Run,
    webhook::Answer,
};

/// Rooms that are served at once.
const ROOMS: usize = 4;
/// Events taken from a room at once.
const BATCH: i64 = 50;
/// A message that the webhook refuses so often is parked.
const MAX_REJECTIONS: i32 = 5;

/// What came of a look at a room.
struct Outcome {
    room: String,
    progress: bool,
    /// The webhook let nothing through: why, and when it wants to be asked again.
    unavailable: Option<(String, Option<Duration>)>,
}

/// What is to become of an event.
enum Verdict {
    Deliver(Box<Message>),
    /// Its key has not come.
    NoKey,
    /// No message for people.
    Skip,
    Fail(String),
}

pub struct Delivery<'a> {
    run: &'a Run,
    /// The last event decrypted in each room, so that a retry is not counted again.
    counted: Mutex<HashMap<String, String>>,
    /// Failures of the webhook in this round since something got through.
    failures: AtomicUsize,
}

impl<'a> Delivery<'a> {
    pub fn new(run: &'a Run) -> Self {
        Self { run, counted: Mutex::default(), failures: AtomicUsize::new(0) }
    }

    /// Deliver until stopped.
    pub async fn run(&self) -> Result<(), BridgeError> {
        let mut delays = Delays::new();
        let mut struggling = HashSet::new();
        while !self.run.stop.is_cancelled() {
            let mut rooms = self.run.inbox.pending_rooms().await?;
            let blocked = !rooms.is_empty();
            // A room whose message breaks the webhook must not keep it from the others.
            rooms.sort_by_key(|room| struggling.contains(room));
            self.failures.store(0, Ordering::Relaxed);
            let round: Vec<Outcome> = stream::iter(rooms)
                .map(|room| self.serve(room))
                .buffer_unordered(ROOMS)
                .try_collect()
                .await?;
            let progress = round.iter().any(|outcome| outcome.progress);
            if progress {
                delays.reset();
            }
            struggling.clear();
            let mut unavailable = None;
            for outcome in round {
                if outcome.unavailable.is_some() {
                    struggling.insert(outcome.room);
                    unavailable = outcome.unavailable;
                }
            }
            let news = self.run.wake.delivery.notified();
            let pause = async {
                if let Some((reason, wish)) = unavailable {
                    let (delay, url) = (delays.next(wish), self.run.webhook.host());
                    warn!("the webhook at {url} failed ({reason}); again in {} s", delay.as_secs());
                    sleep(delay).await;
                } else if blocked && !progress {
                    // Behind a gap, a missing key or a refusal, each of which ends without a word.
                    let _ = timeout(Duration::from_secs(1), news).await;
                } else if !blocked {
                    news.await;
                }
            };
            self.run.stop.run_until_cancelled(pause).await;
        }
        Ok(())
    }

    /// Deliver what is due in one room, in its order.
    async fn serve(&self, room: String) -> Result<Outcome, BridgeError> {
        let (inbox, metrics) = (&self.run.inbox, &self.run.metrics);
        let mut outcome = Outcome { room, progress: false, unavailable: None };
        if self.webhook_is_down() {
            return Ok(outcome);
        }
        let room = outcome.room.as_str();
        for queued in inbox.due(room, BATCH).await? {
            if queued.too_early || self.webhook_is_down() || !self.devices_asked().await {
                break;
            }
            let event_id = queued.event_id.as_str();
            match self.judge(room, &queued).await? {
                Verdict::Deliver(message) => match self.run.webhook.post(&message).await {
                    Answer::Delivered => {
                        inbox.delivered(event_id).await?;
                        metrics.delivered.inc();
                        self.failures.store(0, Ordering::Relaxed);
                        debug!(event_id, "delivered");
                    }
                    Answer::Unavailable { reason, wish } => {
                        self.failures.fetch_add(1, Ordering::Relaxed);
                        outcome.unavailable = Some((reason, wish));
                        break;
                    }
                    Answer::Rejected(reason) => {
                        if !self.rejected(&queued, &reason).await? {
                            break;
                        }
                    }
                },
                Verdict::Skip => inbox.delivered(event_id).await?,
                Verdict::Fail(reason) => {
                    warn!(event_id, room, "not delivered: {reason}");
                    inbox.failed(event_id, &reason).await?;
                    metrics.failed.inc();
                }
                Verdict::NoKey => {
                    info!(event_id, room, "waiting for the key of a message");
                    self.put_to_wait(room, &queued).await?;
                    // What follows may have to wait a moment, too: look again.
                    outcome.progress = true;
                    break;
                }
            }
            outcome.progress = true;
        }
        Ok(outcome)
    }

    /// Wait until those who sent what is stored have been asked about; `false` when the run ends.
    async fn devices_asked(&self) -> bool {
        let mut asked = self.run.devices_asked.subscribe();
        let asked = asked.wait_for(|asked| *asked);
        self.run.stop.run_until_cancelled(asked).await.is_some()
    }

    /// So many failures in a row are not one message's fault: the rest of the round is left out.
    fn webhook_is_down(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= ROOMS
    }

    /// The webhook refused this message. `true` if it is parked, so that others may pass.
    async fn rejected(&self, queued: &Queued, reason: &str) -> Result<bool, BridgeError> {
        let (event_id, count) = (&queued.event_id, queued.rejections + 1);
        if count >= MAX_REJECTIONS {
            warn!(event_id, "the webhook refused a message {count} times ({reason}): parked");
            self.run.inbox.failed(event_id, &format!("the webhook answered {reason}")).await?;
            self.run.metrics.failed.inc();
            return Ok(true);
        }
        let delay = Duration::from_secs(1 << queued.rejections.clamp(0, 6));
        warn!(event_id, "the webhook refused a message ({reason}); again in {} s", delay.as_secs());
        self.run.inbox.retry_in(event_id, delay).await?;
        Ok(false)
    }

    async fn judge(&self, room: &str, queued: &Queued) -> Result<Verdict, BridgeError> {
        let (room_id, stored) = match (RoomId::parse(room), Stored::parse(&queued.json)) {
            (Ok(room_id), Ok(stored)) => (room_id, stored),
            _ => return Ok(Verdict::Fail("malformed event".to_owned())),
        };
        match stored {
            Stored::Plain(event) => Ok(Verdict::Deliver(Box::new(Message::plain(room, event)))),
            Stored::Encrypted(event) => self.decrypt(&room_id, &queued.event_id, &event).await,
        }
    }

    async fn decrypt(
        &self,
        room_id: &RoomId,
        event_id: &str,
        event: &Raw<EncryptedEvent>,
    ) -> Result<Verdict, BridgeError> {
        let decrypted = match self.run.crypto.decrypt(event, room_id).await? {
            RoomEventDecryptionResult::Decrypted(decrypted) => decrypted,
            RoomEventDecryptionResult::UnableToDecrypt(info) => {
                return Ok(undecrypted(info.reason));
            }
        };
        self.count_decrypted(room_id, event_id);
        let info = &decrypted.encryption_info;
        let Some(verification) = verification(&info.verification_state) else {
            let reason = "the claimed sender is not the owner of the key it was encrypted with";
            return Ok(Verdict::Fail(reason.to_owned()));
        };
        let device = info.sender_device.as_ref().map(ToString::to_string);
        Ok(match Message::decrypted(room_id.as_str(), &decrypted.event, verification, device) {
            Ok(Some(message)) => Verdict::Deliver(Box::new(message)),
            Ok(None) => Verdict::Skip,
            Err(_) => Verdict::Fail("malformed after decryption".to_owned()),
        })
    }

    fn count_decrypted(&self, room_id: &RoomId, event_id: &str) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let last = counted.insert(room_id.to_string(), event_id.to_owned());
        if last.as_deref() != Some(event_id) {
            self.run.metrics.decrypted.inc();
        }
    }

    /// Its key may come between our look and our note: then nobody would wake it. Look again.
    async fn put_to_wait(&self, room: &str, queued: &Queued) -> Result<(), BridgeError> {
        self.run.inbox.wait_for_key(&queued.event_id).await?;
        if let (Ok(room_id), Ok(Stored::Encrypted(event))) =
            (RoomId::parse(room), Stored::parse(&queued.json))
            && self.run.crypto.has_key(&event, &room_id).await?
        {
            self.run.inbox.wait_no_longer(&queued.event_id).await?;
        }
        Ok(())
    }
}

fn undecrypted(reason: UnableToDecryptReason) -> Verdict {
    match reason {
        UnableToDecryptReason::MissingMegolmSession { withheld_code } => {
            if let Some(code) = withheld_code {
                warn!(code = code.as_str(), "a sender withholds the key of a message");
            }
            Verdict::NoKey
        }
        UnableToDecryptReason::UnknownMegolmMessageIndex => Verdict::NoKey,
        other => Verdict::Fail(format!("it cannot be decrypted: {other:?}")),
    }
}
