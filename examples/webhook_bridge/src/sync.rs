//! The sync loop: keys, events and position of each sync in one transaction.

use std::{slice, time::Duration};

use ruma::{
    api::client::{
        filter::{Filter, FilterDefinition, LazyLoadOptions, RoomEventFilter, RoomFilter},
        sync::sync_events::v3::{Request, Response},
    },
    presence::PresenceState,
    uint,
};
use tracing::{debug, info, warn};

use crate::{
    changes, errors::BridgeError, homeserver::HomeserverError, inbox::SyncRecord, retry::Delays,
    run::Run, timeline::TIMELINE_TYPES,
};

/// How long the homeserver may wait for news.
const LONG_POLL: Duration = Duration::from_secs(30);

/// Sync until stopped.
pub async fn run(run: &Run) -> Result<(), BridgeError> {
    let mut since = run.inbox.sync_position().await?;
    run.crypto.track(slice::from_ref(&run.config.user_id)).await?;
    if since.is_some() {
        run.crypto.send_outgoing().await?;
        run.devices_asked.send_replace(true);
    }
    // The first answer must not be long in coming: it shows that the bridge is ready.
    let mut timeout = Duration::ZERO;
    while !run.stop.is_cancelled() {
        let answer = poll(run, since.as_deref(), timeout).await?;
        since = Some(take_in(run, since.as_deref(), answer).await?);
        timeout = LONG_POLL;
    }
    Ok(())
}

/// One `/sync`, waiting out what is temporary.
async fn poll(run: &Run, since: Option<&str>, timeout: Duration) -> Result<Response, BridgeError> {
    let mut request = Request::new();
    request.since = since.map(ToOwned::to_owned);
    request.filter = Some(filter().into());
    request.set_presence = PresenceState::Offline;
    request.timeout = Some(timeout);
    let mut delays = Delays::new();
    loop {
        // The first sync of an account in many rooms takes a server minutes.
        let patience = timeout + if since.is_some() { LONG_POLL } else { LONG_POLL * 10 };
        let attempt = run.homeserver.send_within(request.clone(), patience);
        let error = match run.stop.run_until_cancelled(attempt).await {
            None => return Err(BridgeError::Stopped),
            Some(Ok(answer)) => return Ok(answer),
            Some(Err(error)) => error,
        };
        if !error.is_temporary() {
            return Err(error.into());
        }
        let delay = delays.next(error.wish());
        warn!("{error}; syncing again in {} s", delay.as_secs());
        if run.stop.run_until_cancelled(tokio::time::sleep(delay)).await.is_none() {
            return Err(HomeserverError::Stopped.into());
        }
    }
}

/// Take in an answer, and return the position after it. Keys, events and position are one
/// transaction: after a failure nothing of it is there, and it comes again.
async fn take_in(run: &Run, since: Option<&str>, sync: Response) -> Result<String, BridgeError> {
    let known = run.inbox.known_rooms(&changes::room_ids(&sync)).await?;
    let (rooms, people) = changes::of_rooms(&sync, since, &known, &run.config.user_id);
    let record = SyncRecord {
        rooms,
        invitations: sync.rooms.invite.keys().map(ToString::to_string).collect(),
        invitations_gone: sync.rooms.leave.keys().map(ToString::to_string).collect(),
        new_sessions: Vec::new(),
        next_batch: sync.next_batch.clone(),
    };
    let rooms = record.rooms.len();
    run.devices_asked.send_replace(false);
    let received = run
        .crypto
        .receive(&sync, &people, async |transaction, new_sessions| {
            let record = SyncRecord { new_sessions, ..record };
            run.inbox.record(transaction, &record).await
        })
        .await?;
    // After the first position: whoever encrypts for the keys that we upload now does so after it.
    run.crypto.send_outgoing().await?;
    run.devices_asked.send_replace(true);
    if since.is_none() {
        info!(rooms, "first sync done: messages sent from now on are forwarded");
    } else if received > 0 {
        debug!(received, "synced");
    }
    run.metrics.received.inc_by(received);
    run.wake.all();
    Ok(sync.next_batch)
}

/// Only what the bridge uses; a timeline of 100 is the most a homeserver gives.
fn filter() -> FilterDefinition {
    let mut filter = FilterDefinition::default();
    filter.presence = Filter::ignore_all();
    filter.account_data = Filter::ignore_all();
    filter.room = RoomFilter::default();
    filter.room.account_data = RoomEventFilter::ignore_all();
    filter.room.ephemeral = RoomEventFilter::ignore_all();
    filter.room.timeline = timeline_filter();
    filter.room.state = RoomEventFilter::with_lazy_loading();
    filter.room.state.types = Some(vec!["m.room.member".into(), "m.room.encryption".into()]);
    filter
}

/// The same for `/messages`, so that both see the same last event.
pub fn timeline_filter() -> RoomEventFilter {
    let mut filter = RoomEventFilter::default();
    filter.limit = Some(uint!(100));
    filter.types = Some(TIMELINE_TYPES.map(ToOwned::to_owned).to_vec());
    filter.lazy_load_options = LazyLoadOptions::Enabled { include_redundant_members: false };
    filter
}

#[cfg(test)]
mod tests;
