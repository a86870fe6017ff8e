//! Sends what the encryption machine wants sent, beside the sync, which waits for none of it.

use std::{collections::HashMap, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};
use matrix_sdk_crypto::types::requests::{AnyOutgoingRequest, KeysQueryRequest, OutgoingRequest};
use ruma::{
    OwnedUserId, TransactionId, UserId,
    api::client::{keys::get_keys, message::send_message_event, to_device::send_event_to_device},
};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, error, warn};

use crate::{
    devices::Moment,
    errors::BridgeError,
    refusal::HomeserverError,
    retry::Delays,
    run::Run,
    turns::{Next, Turns},
};

/// Key queries in flight.
const QUERIES: usize = 4;
/// Senders that are asked about by themselves.
const SENDERS: usize = 8;
/// How long the homeserver may take for one.
const LIMIT: Duration = Duration::from_secs(30);
/// The query of all users is often answered so soon that a sender needs none alone.
const HEAD_START: Duration = Duration::from_millis(500);

const QUERY: &str = "a key query";

/// Pauses after failures, by what failed. What is refused for good is not sent with every sync.
#[derive(Default)]
struct Rests(HashMap<&'static str, (Instant, Delays)>);

impl Rests {
    fn rests(&self, what: &str) -> bool {
        self.0.get(what).is_some_and(|(until, _)| *until > Instant::now())
    }

    fn note(&mut self, what: &'static str, failed: Option<Option<Duration>>) {
        match failed {
            None => {
                self.0.remove(what);
            }
            Some(wish) => {
                let mut delays = match self.0.remove(what) {
                    Some((_, delays)) => delays,
                    None if what == QUERY => Delays::after_refusals(),
                    None => Delays::up_to(Duration::from_secs(15 * 60)),
                };
                let until = Instant::now() + delays.next(wish);
                self.0.insert(what, (until, delays));
            }
        }
    }

    fn end(&self) -> Option<Instant> {
        self.0.values().map(|(until, _)| *until).filter(|until| *until > Instant::now()).min()
    }
}

/// Send until stopped.
pub async fn run(run: &Run) -> Result<(), BridgeError> {
    let mut rests = Rests::default();
    while !run.stop.is_cancelled() {
        let end = rests.end();
        tokio::select! {
            () = run.wake.outgoing.notified() => {}
            () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => {}
            () = run.stop.cancelled() => return Ok(()),
        }
        let sent = run.stop.run_until_cancelled(send_all(run, &mut rests)).await;
        sent.unwrap_or(Ok(()))?;
    }
    Ok(())
}

/// Ask about the senders of messages that wait, each by itself.
pub async fn ask_senders(run: &Run) -> Result<(), BridgeError> {
    let turns =
        Turns { stop: &run.stop, news: &run.devices.wanted, at_once: SENDERS, delays: Delays::new };
    let list = async || Ok(run.devices.wanted());
    turns.run(list, async |user: &str| ask_about(run, user).await).await
}

async fn ask_about(run: &Run, user: &str) -> Result<Next, BridgeError> {
    let Ok(user) = UserId::parse(user) else { return Ok(Next::Done) };
    run.stop.run_until_cancelled(sleep(HEAD_START)).await;
    if !run.devices.is_wanted(&user) {
        return Ok(Next::Done);
    }
    let asked = run.devices.now();
    let (id, query) = run.crypto.query_about(&user).await?;
    let failed = match run.stop.run_until_cancelled(query_keys(run, &id, &query, asked)).await {
        None => return Ok(Next::Done),
        Some(failed) => failed?,
    };
    if !run.devices.is_wanted(&user) {
        return Ok(Next::Done);
    }
    if run.devices.unanswered(&user) {
        warn!(%user, "the devices of a sender are not told: a message is delivered without them");
        run.wake.delivery.notify_one();
        return Ok(Next::Done);
    }
    Ok(Next::Later(failed.flatten()))
}

async fn send_all(run: &Run, rests: &mut Rests) -> Result<(), BridgeError> {
    if !rests.rests("a key claim")
        && let Some((id, claim)) = run.crypto.missing_sessions().await?
    {
        let failed = exchange(run, &id, "a key claim", claim).await?;
        rests.note("a key claim", failed);
    }
    let asked = run.devices.now();
    let mut queries = Vec::new();
    let requests = run.crypto.outgoing_requests().await?;
    let uploads_device = |request: &OutgoingRequest| match request.request() {
        AnyOutgoingRequest::KeysUpload(upload) => upload.device_keys.is_some(),
        _ => false,
    };
    // Nobody can encrypt for us before.
    run.metrics.device_keys_uploaded.set((!requests.iter().any(uploads_device)).into());
    for request in requests {
        let what = name(&request);
        if rests.rests(what) {
            continue;
        }
        if let AnyOutgoingRequest::KeysQuery(query) = request.request() {
            queries.push((request.request_id().to_owned(), query.clone()));
        } else {
            let failed = send_one(run, &request, what).await?;
            if failed.is_none() && uploads_device(&request) {
                run.metrics.device_keys_uploaded.set(1);
            }
            rests.note(what, failed);
        }
    }
    // Side by side: one slow server holds up its own users only.
    let failed: Vec<Option<Option<Duration>>> = stream::iter(&queries)
        .map(|(id, query)| query_keys(run, id, query, asked))
        .buffer_unordered(QUERIES)
        .try_collect()
        .await?;
    if !failed.is_empty() {
        let worst = failed.into_iter().flatten().max();
        rests.note(QUERY, worst);
    }
    Ok(())
}

/// Ask about users; what failed is asked again. Returns a failure, and what the server wishes.
async fn query_keys(
    run: &Run,
    id: &TransactionId,
    query: &KeysQueryRequest,
    asked: Moment,
) -> Result<Option<Option<Duration>>, BridgeError> {
    let mut request = get_keys::v3::Request::new();
    request.timeout = query.timeout;
    request.device_keys = query.device_keys.clone();
    let answer = match run.homeserver.send_within(request, LIMIT).await {
        Ok(answer) => answer.0,
        Err(error) => return not_sent(QUERY, error).map(Some),
    };
    run.crypto.tell(id, &answer).await?;
    let failures = &answer.failures;
    let failed = |user: &OwnedUserId| failures.contains_key(user.server_name().as_str());
    let told = answer.device_keys.keys().filter(|user| !failed(user));
    if run.devices.told(told, asked) {
        run.wake.delivery.notify_one();
    }
    // The machine itself rests from servers that do not answer.
    let any = query.device_keys.keys().any(|user| answer.device_keys.contains_key(user));
    Ok((!any).then_some(None))
}

fn name(request: &OutgoingRequest) -> &'static str {
    match request.request() {
        AnyOutgoingRequest::KeysUpload(_) => "the key upload",
        AnyOutgoingRequest::KeysQuery(_) => QUERY,
        AnyOutgoingRequest::KeysClaim(_) => "a key claim",
        AnyOutgoingRequest::ToDeviceRequest(_) => "a to-device message",
        AnyOutgoingRequest::SignatureUpload(_) => "a signature upload",
        AnyOutgoingRequest::RoomMessage(_) => "a room message",
    }
}

async fn send_one(
    run: &Run,
    request: &OutgoingRequest,
    what: &'static str,
) -> Result<Option<Option<Duration>>, BridgeError> {
    let id = request.request_id();
    match request.request() {
        AnyOutgoingRequest::KeysUpload(upload) => {
            debug!(
                device_keys = upload.device_keys.is_some(),
                one_time_keys = upload.one_time_keys.len(),
                fallback_keys = upload.fallback_keys.len(),
                "uploading keys"
            );
            exchange(run, id, what, upload.clone()).await
        }
        AnyOutgoingRequest::KeysClaim(claim) => exchange(run, id, what, claim.clone()).await,
        AnyOutgoingRequest::ToDeviceRequest(message) => {
            let request = send_event_to_device::v3::Request::new_raw(
                message.event_type.clone(),
                message.txn_id.clone(),
                message.messages.clone(),
            );
            exchange(run, id, what, request).await
        }
        AnyOutgoingRequest::SignatureUpload(upload) => {
            exchange(run, id, what, upload.clone()).await
        }
        AnyOutgoingRequest::RoomMessage(message) => {
            match send_message_event::v3::Request::new(
                message.room_id.clone(),
                message.txn_id.clone(),
                &*message.content,
            ) {
                Ok(request) => exchange(run, id, what, request).await,
                Err(error) => {
                    warn!("a room message cannot be serialised: {error}");
                    Ok(None)
                }
            }
        }
        // They are sent together.
        AnyOutgoingRequest::KeysQuery(_) => Ok(None),
    }
}

/// Send one, and tell the machine what was answered.
async fn exchange<R>(
    run: &Run,
    id: &TransactionId,
    what: &'static str,
    request: R,
) -> Result<Option<Option<Duration>>, BridgeError>
where
    R: crate::endpoints::Request,
    for<'a> &'a R::Answer: Into<matrix_sdk_crypto::types::requests::AnyIncomingResponse<'a>>,
{
    match run.homeserver.send_within(request, LIMIT).await {
        Ok(answer) => {
            run.crypto.tell(id, &answer).await?;
            Ok(None)
        }
        Err(error) => not_sent(what, error).map(Some),
    }
}

/// A request of the machine failed. Only a refused token ends the run: the rest is tried again.
fn not_sent(what: &str, error: HomeserverError) -> Result<Option<Duration>, BridgeError> {
    if error.ends_run() {
        return Err(error.into());
    }
    if error.status() == Some(400) && error.to_string().contains("One time key") {
        error!(
            "the homeserver has other one-time keys of this device: another process uses it, or \
             the database was rolled back. Messages may become unreadable: begin with a new device \
             (set STORE_ACCOUNT to another name)"
        );
    }
    warn!("{what} failed: {error}");
    Ok(error.wish())
}
