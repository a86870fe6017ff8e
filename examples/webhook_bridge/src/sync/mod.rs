//! The sync loop: keys, events and position of each sync in one transaction.

use std::{slice, time::Duration};

use ruma::{
    api::client::{
        filter::{Filter, FilterDefinition, LazyLoadOptions, RoomEventFilter, RoomFilter},
        sync::sync_events::v3::Request,
    },
    presence::PresenceState,
    uint,
};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::{
    answers::Sync,
    changes::{self, Position},
    errors::BridgeError,
    inbox::SyncRecord,
    retry::Delays,
    run::Run,
    timeline::TIMELINE_TYPES,
};

/// How long the homeserver may wait for news.
const LONG_POLL: Duration = Duration::from_secs(30);
/// After an outage a homeserver may take minutes to tell of all that was missed.
const LONGEST_LIMIT: Duration = Duration::from_secs(5 * 60);
/// So often it may refuse the stored position before we go on without.
const REFUSALS: u32 = 3;
/// A pause after answers that came at once and led nowhere, one after the other.
const IDLE: Duration = Duration::from_secs(1);

/// Sync until stopped.
pub async fn run(run: &Run) -> Result<(), BridgeError> {
    let stored = run.inbox.sync_position().await?;
    let mut position = stored.map_or(Position::First, Position::At);
    run.follow(slice::from_ref(&run.config.user_id)).await?;
    if position != Position::First {
        run.wake.all();
    }
    // The first answer must not be long in coming: it shows that the bridge is ready.
    let mut timeout = Duration::ZERO;
    let mut idle = 0;
    while !run.stop.is_cancelled() {
        let began = Instant::now();
        let sync = poll(run, &mut position, timeout).await?;
        let moves = !sync.is_empty() && position.since() != Some(&sync.next_batch);
        let is_idle = !moves && timeout > Duration::ZERO && began.elapsed() < IDLE;
        idle = if is_idle { idle + 1 } else { 0 };
        position = Position::At(take_in(run, &position, sync).await?);
        timeout = LONG_POLL;
        // One alone is nothing unusual, and would hold up the next message.
        if idle > 1 {
            run.stop.run_until_cancelled(sleep(IDLE)).await;
        }
    }
    Ok(())
}

/// One `/sync`, waiting out what is temporary. A position that the homeserver refuses again and again
/// is given up: it was restored or replaced.
async fn poll(run: &Run, position: &mut Position, timeout: Duration) -> Result<Sync, BridgeError> {
    let mut delays = Delays::new();
    let mut refusals = 0;
    // The first sync of an account in many rooms takes a server minutes.
    let mut patience = if position.since().is_some() { LONG_POLL } else { LONGEST_LIMIT };
    loop {
        let mut request = Request::new();
        request.since = position.since().map(ToOwned::to_owned);
        request.filter = Some(filter().into());
        request.set_presence = PresenceState::Offline;
        request.timeout = Some(timeout);
        let known = position.since().is_some();
        let began = Instant::now();
        let attempt = run.homeserver.send_within(request, timeout + patience);
        let error = match run.stop.run_until_cancelled(attempt).await {
            None => return Err(BridgeError::Stopped),
            Some(Ok(answer)) => return Ok(answer),
            Some(Err(error)) => error,
        };
        if error.ends_run() {
            return Err(error.into());
        }
        if known && error.refuses_position() {
            refusals += 1;
        }
        if refusals >= REFUSALS {
            warn!(
                "{error}: the homeserver does not know our sync position any more, so it was \
                 restored or replaced. Going on without: each known room is filled back to its last \
                 event"
            );
            run.metrics.positions_lost.inc();
            *position = Position::Lost;
            (refusals, delays, patience) = (0, Delays::new(), LONGEST_LIMIT);
            continue;
        }
        if began.elapsed() >= timeout + patience {
            patience = more(patience);
        }
        let delay = delays.next(error.wish());
        warn!("{error}; syncing again in {} s", delay.as_secs());
        if run.stop.run_until_cancelled(sleep(delay)).await.is_none() {
            return Err(BridgeError::Stopped);
        }
    }
}

/// An answer that did not come in time may need longer.
fn more(patience: Duration) -> Duration {
    (patience * 2).min(LONGEST_LIMIT)
}

/// Take in an answer, and return the position after it. Keys, events and position are one
/// transaction: after a failure nothing of it is there, and it comes again.
async fn take_in(run: &Run, position: &Position, sync: Sync) -> Result<String, BridgeError> {
    let lost = *position == Position::Lost;
    let mut known = run.inbox.known_rooms(&changes::room_ids(&sync)).await?;
    if lost {
        run.inbox.mark_seen(&mut known, &changes::event_ids(&sync)).await?;
    }
    let (rooms, people) = changes::of_rooms(&sync, position, &known, &run.config.user_id);
    let record = SyncRecord {
        rooms,
        lost,
        invitations: sync.invited.clone(),
        invitations_gone: sync.left.iter().map(|(room, _)| room.clone()).collect(),
        new_sessions: Vec::new(),
        next_batch: sync.next_batch.clone(),
    };
    let count = record.rooms.len();
    for room in &record.rooms {
        run.note_unreadable(&room.room_id, room.unreadable);
    }
    // Before the messages are there: they wait for these.
    run.devices.follow(&people);
    run.devices.changed(&sync.device_lists.changed);
    if lost {
        run.devices.all_changed();
    }
    let received = run
        .crypto
        .receive(&sync, &people, lost, async |transaction, new_sessions| {
            let record = SyncRecord { new_sessions, ..record };
            run.inbox.record(transaction, &record).await
        })
        .await?;
    run.metrics.synced();
    if *position == Position::First {
        info!(rooms = count, "first sync done: messages sent from now on are forwarded");
    } else if received > 0 {
        debug!(received, "synced");
    }
    run.metrics.received.inc_by(received);
    // After the first position: keys that are uploaded now are used after it.
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
