//! Fills gaps (backfill): events that a limited sync left out are fetched from `/messages`, page by
//! page, newest first.

use std::time::Duration;

use ruma::{RoomId, api::client::message::get_message_events::v3::Request, uint};
use tracing::{info, warn};

use crate::{
    errors::BridgeError,
    inbox::{Gap, Pages},
    refusal::{FailureTimers, Refusals},
    responses::{Event, Page},
    retry::Delays,
    run::Run,
    scheduler::{Next, Scheduler},
    sync::timeline_filter,
    timeline::{event_id, read_page},
};

/// Gaps that are filled concurrently, one page each per round.
const CONCURRENT_GAPS: usize = 4;
/// A gap that fails while the homeserver works is abandoned after this multiple of the retry timeout:
/// 2 hours by default.
const RETRY_TIMEOUT_FACTOR: u32 = 12;
/// The pause after an empty page is this times the number of empty pages so far.
const EMPTY_PAGE_PAUSE: Duration = Duration::from_millis(100);

/// Fill gaps until stopped.
pub async fn run(run: &Run) -> Result<(), BridgeError> {
    let scheduler = Scheduler {
        stop: &run.stop,
        wakeup: &run.wake.gaps,
        concurrency: CONCURRENT_GAPS,
        delays: Delays::new,
    };
    let (refusals, failures) = (Refusals::default(), FailureTimers::default());
    let list = async || run.inbox.rooms_with_gaps().await;
    scheduler.run(list, async |room: &str| fill(run, &refusals, &failures, room).await).await
}

/// Fetch one page of a room's oldest gap, which blocks the room's later events.
async fn fill(
    run: &Run,
    refusals: &Refusals,
    failures: &FailureTimers,
    room: &str,
) -> Result<Next, BridgeError> {
    let Some(mut gap) = run.inbox.oldest_gap(room).await? else { return Ok(Next::Done) };
    let Ok(room_id) = RoomId::parse(room) else {
        return abandon(run, gap, "the room id is malformed").await;
    };
    if gap.pages.all >= run.config.gap_max_pages
        || gap.pages.empty >= run.config.gap_max_empty_pages
    {
        let Pages { all, empty } = gap.pages;
        let reason = format!("no end within {all} pages, {empty} of them empty");
        return abandon(run, gap, &reason).await;
    }
    let mut request = Request::backward(room_id);
    request.from = Some(gap.from_token.clone()).filter(|token| !token.is_empty());
    request.to = gap.to_token.clone();
    request.limit = uint!(100);
    request.filter = timeline_filter(run.config.reactions);
    let response = match run.stop.run_until_cancelled(run.homeserver.send(request)).await {
        None => return Ok(Next::Done),
        Some(Ok(response)) => response,
        Some(Err(error)) if error.ends_run() => return Err(error.into()),
        Some(Err(error)) if error.is_unrelated() || refusals.record_refusal(room) => {
            let failed = failures.record_failure(room, run.metrics.synced_recently());
            if failed >= run.config.retry_timeout * RETRY_TIMEOUT_FACTOR {
                let reason = format!("requests have failed for {} s: {error}", failed.as_secs());
                failures.reset(room);
                return abandon(run, gap, &reason).await;
            }
            let failed = failed.as_secs();
            warn!(
                room,
                seconds = failed,
                "a gap cannot be filled yet, and the room's later messages wait: {error}"
            );
            return Ok(Next::Backoff(error.retry_after()));
        }
        Some(Err(error)) => {
            failures.reset(room);
            return abandon(run, gap, &error.to_string()).await;
        }
    };
    refusals.reset(room);
    failures.reset(room);
    let empty = response.events.is_empty();
    if store(run, &mut gap, response, empty).await? {
        info!(room, messages = gap.filled, "gap filled");
        run.wake.delivery.notify_one();
        return Ok(Next::Requeue);
    }
    Ok(match u32::try_from(gap.pages.empty) {
        Ok(pages) if empty => Next::After(EMPTY_PAGE_PAUSE * pages),
        _ => Next::Requeue,
    })
}

/// Store a page. Returns `true` if it closes the gap.
async fn store(run: &Run, gap: &mut Gap, response: Page, empty: bool) -> Result<bool, BridgeError> {
    let Page { mut events, end } = response;
    // Without a `to` token, the gap ends at the first event that is stored already.
    let mut ended = end.is_none();
    if gap.to_token.is_none() && gap.stop_event_id.is_some() {
        let ids: Vec<String> = events.iter().filter_map(event_id).collect();
        let known = run.inbox.known_before(gap, &ids).await?;
        let is_known = |event: &_| event_id(event).is_some_and(|id| known.contains(&id));
        if let Some(at) = events.iter().position(is_known) {
            events.truncate(at);
            ended = true;
        }
    }
    if gap.from_newest {
        drop_newer(run, gap, &mut events, ended).await?;
    }
    let to_own_join = gap.to_token.is_none();
    let me = &run.config.user_id;
    let page = read_page(&events, me, gap.stop_event_id.as_deref(), to_own_join);
    run.count_malformed(&gap.room_id, page.malformed);
    run.track(&page.people).await?;
    // A homeserver that repeats the token has no more pages.
    let next = end.filter(|end| !page.ended && !ended && *end != gap.from_token);
    let closed = next.is_none();
    gap.pages.all += 1;
    gap.pages.empty += i32::from(empty);
    let received = run.inbox.fill(gap, &page.messages, &page.redacted, next).await?;
    run.metrics.received.increment(received);
    Ok(closed)
}

/// Drop the events that are newer than the first event after the gap: syncs return those, in order.
/// `last` is true for the last page.
async fn drop_newer(
    run: &Run,
    gap: &mut Gap,
    events: &mut Vec<Event>,
    last: bool,
) -> Result<(), BridgeError> {
    let first_after = run.inbox.first_after(gap).await?;
    let is_first_after = |event: &Event| event_id(event) == first_after;
    match events.iter().position(is_first_after) {
        Some(at) => {
            events.drain(..=at);
        }
        None if first_after.is_some() && !last => {
            events.clear();
            return Ok(());
        }
        None => {}
    }
    gap.from_newest = false;
    Ok(())
}

/// Give a gap up, so that it no longer blocks the room.
async fn abandon(run: &Run, mut gap: Gap, reason: &str) -> Result<Next, BridgeError> {
    warn!(room = gap.room_id, "gap abandoned, messages may be missing: {reason}");
    run.metrics.gaps_abandoned.increment(1);
    run.inbox.fill(&mut gap, &[], &[], None).await?;
    run.wake.delivery.notify_one();
    Ok(Next::Requeue)
}
