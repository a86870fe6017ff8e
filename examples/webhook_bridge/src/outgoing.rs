//! Sends the encryption machine's requests concurrently with the sync loop.

use std::{collections::HashMap, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};
use matrix_sdk_crypto::types::requests::{
    AnyOutgoingRequest, KeysQueryRequest, OutgoingRequest, ToDeviceRequest,
};
use ruma::{
    OwnedTransactionId, OwnedUserId, TransactionId, UserId,
    api::client::{keys::get_keys, message::send_message_event, to_device::send_event_to_device},
};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, error, warn};

use crate::{
    devices::ChangeCount,
    errors::BridgeError,
    refusal::HomeserverError,
    retry::Delays,
    run::Run,
    scheduler::{Next, Scheduler},
};

/// Concurrent key queries of the machine.
const CONCURRENT_QUERIES: usize = 4;
/// Concurrent key queries for single senders.
const CONCURRENT_SENDERS: usize = 8;
/// To-device messages that are sent before other requests are looked at again. Each message of an invented
/// session makes one, which asks for its key.
const TO_DEVICE_MESSAGES: usize = 20;
/// Time limit of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Delay before a single sender is queried: the machine's own query often makes that unnecessary.
const SENDER_QUERY_DELAY: Duration = Duration::from_millis(500);

const QUERY: &str = "a key query";
const TO_DEVICE: &str = "a to-device message";

/// Backoff after failures, by kind of request, so that a permanently refused request is not sent again
/// with every sync.
#[derive(Default)]
struct Backoffs(HashMap<&'static str, (Instant, Delays)>);

impl Backoffs {
    fn is_paused(&self, what: &str) -> bool {
        self.0.get(what).is_some_and(|(until, _)| *until > Instant::now())
    }

    fn record(&mut self, what: &'static str, failed: Option<Option<Duration>>) {
        match failed {
            None => {
                self.0.remove(what);
            }
            Some(retry_after) => {
                let mut delays = match self.0.remove(what) {
                    Some((_, delays)) => delays,
                    None if what == QUERY => Delays::after_refusals(),
                    None => Delays::up_to(Duration::from_secs(15 * 60)),
                };
                let until = Instant::now() + delays.next(retry_after);
                self.0.insert(what, (until, delays));
            }
        }
    }

    fn next_expiry(&self) -> Option<Instant> {
        self.0.values().map(|(until, _)| *until).filter(|until| *until > Instant::now()).min()
    }
}

/// Send until stopped.
pub async fn run(run: &Run) -> Result<(), BridgeError> {
    let mut backoffs = Backoffs::default();
    while !run.stop.is_cancelled() {
        let expiry = backoffs.next_expiry();
        tokio::select! {
            () = run.wake.outgoing.notified() => {}
            () = sleep_until(expiry.unwrap_or_else(Instant::now)), if expiry.is_some() => {}
            () = run.stop.cancelled() => return Ok(()),
        }
        let sent = run.stop.run_until_cancelled(send_all(run, &mut backoffs)).await;
        sent.unwrap_or(Ok(()))?;
    }
    Ok(())
}

/// Query the devices of the senders of waiting messages, each separately.
pub async fn query_senders(run: &Run) -> Result<(), BridgeError> {
    let scheduler = Scheduler {
        stop: &run.stop,
        wakeup: &run.devices.query_needed,
        concurrency: CONCURRENT_SENDERS,
        delays: Delays::new,
    };
    let list = async || Ok(run.devices.users_to_query());
    scheduler.run(list, async |user: &str| query_sender(run, user).await).await
}

async fn query_sender(run: &Run, user: &str) -> Result<Next, BridgeError> {
    let Ok(user) = UserId::parse(user) else { return Ok(Next::Done) };
    run.stop.run_until_cancelled(sleep(SENDER_QUERY_DELAY)).await;
    if !run.devices.needs_query(&user) {
        return Ok(Next::Done);
    }
    let sent_at = run.devices.change_count();
    let (id, query) = run.crypto.query_for_user(&user).await?;
    let failed = match run.stop.run_until_cancelled(query_keys(run, &id, &query, sent_at)).await {
        None => return Ok(Next::Done),
        Some(failed) => failed?,
    };
    if !run.devices.needs_query(&user) {
        return Ok(Next::Done);
    }
    if run.devices.query_failed(&user) {
        warn!(%user, "the devices of a sender are unavailable: delivering its messages without them");
        run.wake.delivery.notify_one();
        return Ok(Next::Done);
    }
    Ok(Next::Backoff(failed.flatten()))
}

async fn send_all(run: &Run, backoffs: &mut Backoffs) -> Result<(), BridgeError> {
    if !backoffs.is_paused("a key claim")
        && let Some((id, claim)) = run.crypto.missing_sessions().await?
    {
        let failed = exchange(run, &id, "a key claim", claim).await?;
        backoffs.record("a key claim", failed);
    }
    let sent_at = run.devices.change_count();
    let (mut queries, mut messages) = (Vec::new(), Vec::new());
    let requests = run.crypto.outgoing_requests().await?;
    let uploads_device = |request: &OutgoingRequest| match request.request() {
        AnyOutgoingRequest::KeysUpload(upload) => upload.device_keys.is_some(),
        _ => false,
    };
    // Before the upload, no other device can encrypt for this one.
    let uploaded = !requests.iter().any(uploads_device);
    run.metrics.device_keys_uploaded.set(uploaded);
    for request in requests {
        let what = name(&request);
        if backoffs.is_paused(what) {
            continue;
        }
        match request.request() {
            AnyOutgoingRequest::KeysQuery(query) => {
                queries.push((request.request_id().to_owned(), query.clone()));
            }
            AnyOutgoingRequest::ToDeviceRequest(_) => messages.push(request),
            _ => {
                let failed = send_one(run, &request, what).await?;
                if failed.is_none() && uploads_device(&request) {
                    run.metrics.device_keys_uploaded.set(true);
                }
                backoffs.record(what, failed);
            }
        }
    }
    if run.metrics.device_keys_uploaded.is_set() {
        run.wake.device_published.notify_one();
    }
    // Concurrently, so that a slow server delays only its own users.
    let failed: Vec<Option<Option<Duration>>> = stream::iter(&queries)
        .map(|(id, query)| query_keys(run, id, query, sent_at))
        .buffer_unordered(CONCURRENT_QUERIES)
        .try_collect()
        .await?;
    if !failed.is_empty() {
        let worst = failed.into_iter().flatten().max();
        backoffs.record(QUERY, worst);
    }
    send_messages(run, &messages, backoffs).await
}

/// Send the first of these to-device messages; the others follow after the other requests.
async fn send_messages(
    run: &Run,
    messages: &[OutgoingRequest],
    backoffs: &mut Backoffs,
) -> Result<(), BridgeError> {
    for message in messages.iter().take(TO_DEVICE_MESSAGES) {
        let failed = send_one(run, message, TO_DEVICE).await?;
        let is_sent = failed.is_none();
        backoffs.record(TO_DEVICE, failed);
        if !is_sent {
            return Ok(());
        }
    }
    if messages.len() > TO_DEVICE_MESSAGES {
        run.wake.outgoing.notify_one();
    }
    Ok(())
}

/// Send a to-device message that may have been sent before: with its own transaction id, the homeserver would not
/// pass it on again. Returns `Some` if it failed, with the server's retry delay, if any.
pub async fn repeat_to_device(
    run: &Run,
    request: &OutgoingRequest,
) -> Result<Option<Option<Duration>>, BridgeError> {
    match request.request() {
        AnyOutgoingRequest::ToDeviceRequest(message) => {
            let again = to_device(message, TransactionId::new());
            exchange(run, request.request_id(), TO_DEVICE, again).await
        }
        _ => Ok(None),
    }
}

fn to_device(
    message: &ToDeviceRequest,
    transaction: OwnedTransactionId,
) -> send_event_to_device::v3::Request {
    let (event_type, messages) = (message.event_type.clone(), message.messages.clone());
    send_event_to_device::v3::Request::new_raw(event_type, transaction, messages)
}

/// Query the devices and the identity of the bot's user. Returns whether the homeserver has an identity;
/// `None` if the query failed.
pub async fn query_own_devices(run: &Run) -> Result<Option<bool>, BridgeError> {
    let user = &run.config.user_id;
    let sent_at = run.devices.change_count();
    let (id, query) = run.crypto.query_for_user(user).await?;
    let answer = send_query(run, &id, &query, sent_at).await?;
    Ok(answer.ok().map(|answer| answer.master_keys.contains_key(user)))
}

/// Send a key query. Returns `Some` if it failed, with the server's retry delay, if any.
async fn query_keys(
    run: &Run,
    id: &TransactionId,
    query: &KeysQueryRequest,
    sent_at: ChangeCount,
) -> Result<Option<Option<Duration>>, BridgeError> {
    Ok(send_query(run, id, query, sent_at).await?.err())
}

/// Send a key query. The inner error is the server's retry delay, if any.
async fn send_query(
    run: &Run,
    id: &TransactionId,
    query: &KeysQueryRequest,
    sent_at: ChangeCount,
) -> Result<Result<get_keys::v3::Response, Option<Duration>>, BridgeError> {
    let mut request = get_keys::v3::Request::new();
    request.timeout = query.timeout;
    request.device_keys = query.device_keys.clone();
    let response = match run.homeserver.send_within(request, REQUEST_TIMEOUT).await {
        Ok(response) => response.0,
        Err(error) => return log_failure(QUERY, error).map(Err),
    };
    run.crypto.mark_as_sent(id, &response).await?;
    let failures = &response.failures;
    let failed = |user: &OwnedUserId| failures.contains_key(user.server_name().as_str());
    let users = response.device_keys.keys().filter(|user| !failed(user));
    if run.devices.queried(users, sent_at) {
        run.wake.delivery.notify_one();
    }
    // A partial failure is none: the machine itself backs off from servers that do not respond.
    let any = query.device_keys.keys().any(|user| response.device_keys.contains_key(user));
    Ok(if any { Ok(response) } else { Err(None) })
}

fn name(request: &OutgoingRequest) -> &'static str {
    match request.request() {
        AnyOutgoingRequest::KeysUpload(_) => "the key upload",
        AnyOutgoingRequest::KeysQuery(_) => QUERY,
        AnyOutgoingRequest::KeysClaim(_) => "a key claim",
        AnyOutgoingRequest::ToDeviceRequest(_) => TO_DEVICE,
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
            exchange(run, id, what, to_device(message, message.txn_id.clone())).await
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
        // Sent by `query_keys`.
        AnyOutgoingRequest::KeysQuery(_) => Ok(None),
    }
}

/// Send a request, and pass the response to the machine. Returns `Some` if it failed, as `query_keys`.
async fn exchange<R>(
    run: &Run,
    id: &TransactionId,
    what: &'static str,
    request: R,
) -> Result<Option<Option<Duration>>, BridgeError>
where
    R: crate::endpoints::Request,
    for<'a> &'a R::Response: Into<matrix_sdk_crypto::types::requests::AnyIncomingResponse<'a>>,
{
    match run.homeserver.send_within(request, REQUEST_TIMEOUT).await {
        Ok(response) => {
            run.crypto.mark_as_sent(id, &response).await?;
            Ok(None)
        }
        Err(error) => log_failure(what, error).map(Some),
    }
}

/// Log a failed request and return the server's retry delay. Only a refused token ends the run.
fn log_failure(what: &str, error: HomeserverError) -> Result<Option<Duration>, BridgeError> {
    if error.ends_run() {
        return Err(error.into());
    }
    if error.status() == Some(400) && error.to_string().contains("One time key") {
        error!(
            "the homeserver has other one-time keys of this device: another process uses the device, \
             or the database was rolled back. Messages may become undecryptable: start with a new \
             device (set STORE_ACCOUNT to another name)"
        );
    }
    warn!("{what} failed: {error}");
    Ok(error.retry_after())
}
