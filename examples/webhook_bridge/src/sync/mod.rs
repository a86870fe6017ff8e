//! The sync loop: keys, events and position of each sync in one transaction.

use std::{collections::HashMap, slice, time::Duration};

use ruma::{
    UserId,
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
    changes::{self, Position},
    errors::BridgeError,
    inbox::SyncRecord,
    membership,
    responses::{Invitation, Sync},
    retry::Delays,
    run::Run,
    timeline::TIMELINE_TYPES,
    withheld,
};

/// The `timeout` parameter of `/sync`.
const LONG_POLL: Duration = Duration::from_secs(30);
/// After an outage a homeserver may need minutes for a sync.
const MAX_RESPONSE_TIME: Duration = Duration::from_secs(5 * 60);
/// After this many refusals the stored position counts as lost.
const MAX_POSITION_REFUSALS: u32 = 3;
/// The pause after consecutive immediate responses without news, to avoid a busy loop.
const IDLE_PAUSE: Duration = Duration::from_secs(1);

/// Sync until stopped.
pub async fn run(run: &Run) -> Result<(), BridgeError> {
    let stored = run.inbox.sync_position().await?;
    let mut position = stored.map_or(Position::First, Position::At);
    run.track(slice::from_ref(&run.config.user_id)).await?;
    if position != Position::First {
        run.wake.all();
    }
    // The first sync must not long-poll: readiness depends on it.
    let mut timeout = Duration::ZERO;
    let mut idle = 0;
    while !run.stop.is_cancelled() {
        let began = Instant::now();
        let sync = poll(run, &mut position, timeout).await?;
        let moves = !sync.is_empty() && position.since() != Some(&sync.next_batch);
        let is_idle = !moves && timeout > Duration::ZERO && began.elapsed() < IDLE_PAUSE;
        idle = if is_idle { idle + 1 } else { 0 };
        position = Position::At(process(run, &position, sync).await?);
        timeout = LONG_POLL;
        // A single one is normal, and a pause would delay the next message.
        if idle > 1 {
            run.stop.run_until_cancelled(sleep(IDLE_PAUSE)).await;
        }
    }
    Ok(())
}

/// Send one `/sync`, retrying temporary errors. A position that is refused repeatedly is dropped: the
/// homeserver was restored or replaced.
async fn poll(run: &Run, position: &mut Position, timeout: Duration) -> Result<Sync, BridgeError> {
    let mut delays = Delays::new();
    let mut refusals = 0;
    // An initial sync with many rooms can take minutes.
    let mut response_time = if position.since().is_some() { LONG_POLL } else { MAX_RESPONSE_TIME };
    loop {
        let mut request = Request::new();
        request.since = position.since().map(ToOwned::to_owned);
        request.filter = Some(filter(position, run.config.reactions).into());
        request.set_presence = PresenceState::Offline;
        request.timeout = Some(timeout);
        let known = position.since().is_some();
        let began = Instant::now();
        let attempt = run.homeserver.send_within(request, timeout + response_time);
        let error = match run.stop.run_until_cancelled(attempt).await {
            None => return Err(BridgeError::Stopped),
            Some(Ok(response)) => return Ok(response),
            Some(Err(error)) => error,
        };
        if error.ends_run() {
            return Err(error.into());
        }
        if known && error.refuses_position() {
            refusals += 1;
        }
        if refusals >= MAX_POSITION_REFUSALS {
            warn!(
                "{error}: the homeserver does not know the stored sync position any more, so it was \
                 restored or replaced. Syncing without a position: each known room is filled back to \
                 its last event"
            );
            run.metrics.positions_lost.increment(1);
            *position = Position::Lost;
            (refusals, delays, response_time) = (0, Delays::new(), MAX_RESPONSE_TIME);
            continue;
        }
        if began.elapsed() >= timeout + response_time {
            response_time = extended(response_time);
        }
        let delay = delays.next(error.retry_after());
        warn!("the sync failed: {error}; trying again in {} s", delay.as_secs());
        if run.stop.run_until_cancelled(sleep(delay)).await.is_none() {
            return Err(BridgeError::Stopped);
        }
    }
}

/// The longer time limit after a timeout.
fn extended(response_time: Duration) -> Duration {
    (response_time * 2).min(MAX_RESPONSE_TIME)
}

/// Process a sync response, and return the next position. Keys, events and position are stored in one
/// transaction: after a failure nothing is stored, and the homeserver sends the same response again.
async fn process(run: &Run, position: &Position, sync: Sync) -> Result<String, BridgeError> {
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
        origins: HashMap::new(),
        inviters: own_invitations(&sync, &run.config.user_id),
        upgrades: membership::upgrades(&sync),
        withheld: withheld::read(&sync.to_device),
    };
    let origins = run.config.labels.origins(&record.rooms, &record.inviters);
    let record = SyncRecord { origins, ..record };
    let notices = record.withheld.clone();
    let count = record.rooms.len();
    let left = changes::left(&record.rooms);
    for room in &record.rooms {
        run.count_malformed(&room.room_id, room.malformed);
    }
    // Before the messages are stored, because they wait for their senders' devices.
    run.devices.track(&people);
    run.devices.mark_changed(&sync.device_lists.changed);
    let own_changed = sync.device_lists.changed.contains(&run.config.user_id);
    if lost {
        run.devices.mark_all_changed();
    }
    let received = run
        .crypto
        .receive(&sync, &people, lost, async |transaction, new_sessions| {
            let record = SyncRecord { new_sessions, ..record };
            run.inbox.record(transaction, &record).await
        })
        .await?;
    run.metrics.synced();
    run.synced.cancel();
    withheld::report(run, &notices);
    membership::report_removals(run, &sync, &left);
    if *position == Position::First {
        info!(rooms = count, "first sync done: messages sent from now on are forwarded");
    } else if received > 0 {
        debug!(received, "synced");
    }
    run.metrics.received.increment(received);
    // Keys are uploaded only after the first position is stored, so no message before it uses them.
    run.wake.all();
    if own_changed {
        run.wake.own_devices.notify_one();
    }
    Ok(sync.next_batch)
}

/// The bot's own invitations. One with several inviters counts as having none: all but one of these events
/// are claims of the inviter's server.
fn own_invitations(sync: &Sync, me: &UserId) -> Vec<Invitation> {
    let mut own = HashMap::<&str, Option<&Invitation>>::new();
    for one in sync.invitations.iter().filter(|one| one.invited == me.as_str()) {
        own.entry(&one.room_id)
            .and_modify(|known| *known = known.filter(|known| known.inviter == one.inviter))
            .or_insert(Some(one));
    }
    own.into_values().flatten().cloned().collect()
}

/// Only what the bridge uses. The first sync delivers nothing, and needs each room's last event only.
fn filter(position: &Position, reactions: bool) -> FilterDefinition {
    let mut filter = FilterDefinition::default();
    filter.presence = Filter::ignore_all();
    filter.account_data = Filter::ignore_all();
    filter.room = RoomFilter::default();
    filter.room.account_data = RoomEventFilter::ignore_all();
    filter.room.ephemeral = RoomEventFilter::ignore_all();
    filter.room.timeline = timeline_filter(reactions);
    if *position == Position::First {
        filter.room.timeline.limit = Some(uint!(1));
    }
    filter.room.state = RoomEventFilter::with_lazy_loading();
    let types = ["m.room.member", "m.room.encryption", "m.room.tombstone"];
    filter.room.state.types = Some(types.map(ToOwned::to_owned).to_vec());
    filter
}

/// Also used for `/messages`, so that both return the same events. 100 are the most that homeservers return.
pub fn timeline_filter(reactions: bool) -> RoomEventFilter {
    let mut filter = RoomEventFilter::default();
    filter.limit = Some(uint!(100));
    let types = TIMELINE_TYPES.into_iter().filter(|kind| reactions || *kind != "m.reaction");
    filter.types = Some(types.map(ToOwned::to_owned).collect());
    filter.lazy_load_options = LazyLoadOptions::Enabled { include_redundant_members: false };
    filter
}

#[cfg(test)]
mod tests;
