//! Fills gaps: what a sync left out is fetched from `/messages`, page by page, from new to old.

use std::time::Duration;

use ruma::{RoomId, api::client::message::get_message_events::v3::Request, uint};
use tracing::{info, warn};

use crate::{
    answers::{Event, Page},
    errors::BridgeError,
    inbox::{Gap, Pages},
    refusal::{Failing, Refusals},
    retry::Delays,
    run::Run,
    sync::timeline_filter,
    timeline::{event_id, read_page},
    turns::{Next, Turns},
};

/// Gaps that are filled at once, a page each in turn.
const AT_ONCE: usize = 4;
/// What fails while the homeserver works is tried so many times as long as what is refused: 2 hours.
const WAIT_LIMIT: u32 = 12;
/// The pause after the first empty page; it grows by as much with each.
const PAUSE: Duration = Duration::from_millis(100);

/// Fill gaps until stopped.
pub async fn run(run: &Run) -> Result<(), BridgeError> {
    let turns =
        Turns { stop: &run.stop, news: &run.wake.gaps, at_once: AT_ONCE, delays: Delays::new };
    let (refusals, failing) = (Refusals::default(), Failing::default());
    let list = async || run.inbox.rooms_with_gaps().await;
    turns.run(list, async |room: &str| fill(run, &refusals, &failing, room).await).await
}

/// One page of a room's oldest gap, for which its events wait.
async fn fill(
    run: &Run,
    refusals: &Refusals,
    failing: &Failing,
    room: &str,
) -> Result<Next, BridgeError> {
    let Some(mut gap) = run.inbox.oldest_gap(room).await? else { return Ok(Next::Done) };
    let Ok(room_id) = RoomId::parse(room) else {
        return abandon(run, gap, "its room id is malformed").await;
    };
    if gap.pages.all >= run.config.gap_pages || gap.pages.empty >= run.config.gap_empty_pages {
        let Pages { all, empty } = gap.pages;
        let reason = format!("it does not end within {all} pages, {empty} of them empty");
        return abandon(run, gap, &reason).await;
    }
    let mut request = Request::backward(room_id);
    request.from = Some(gap.from_token.clone()).filter(|token| !token.is_empty());
    request.to = gap.to_token.clone();
    request.limit = uint!(100);
    request.filter = timeline_filter();
    let answer = match run.stop.run_until_cancelled(run.homeserver.send(request)).await {
        None => return Ok(Next::Done),
        Some(Ok(answer)) => answer,
        Some(Err(error)) if error.ends_run() => return Err(error.into()),
        Some(Err(error)) if error.is_beside_the_point() || refusals.again(room) => {
            let failed = failing.again(room, run.metrics.synced_lately());
            if failed >= run.config.refusal_wait * WAIT_LIMIT {
                let reason = format!("it has failed for {} s, now so: {error}", failed.as_secs());
                failing.ended(room);
                return abandon(run, gap, &reason).await;
            }
            let failed = failed.as_secs();
            warn!(
                room,
                seconds = failed,
                "a gap cannot be filled yet, and its room waits: {error}"
            );
            return Ok(Next::Later(error.wish()));
        }
        Some(Err(error)) => {
            failing.ended(room);
            return abandon(run, gap, &error.to_string()).await;
        }
    };
    refusals.granted(room);
    failing.ended(room);
    let empty = answer.events.is_empty();
    if store(run, &mut gap, answer, empty).await? {
        info!(room, messages = gap.filled, "a gap is filled");
        run.wake.delivery.notify_one();
        return Ok(Next::Again);
    }
    Ok(match u32::try_from(gap.pages.empty) {
        Ok(pages) if empty => Next::After(PAUSE * pages),
        _ => Next::Again,
    })
}

/// Store a page; `true` if it closes the gap.
async fn store(run: &Run, gap: &mut Gap, answer: Page, empty: bool) -> Result<bool, BridgeError> {
    let Page { mut events, end } = answer;
    // Without the position of the sync before it, what is known already is where it ends.
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
        leave_out_newer(run, gap, &mut events, ended).await?;
    }
    let to_own_join = gap.to_token.is_none();
    let me = &run.config.user_id;
    let page = read_page(&events, me, gap.stop_event_id.as_deref(), to_own_join);
    run.note_unreadable(&gap.room_id, page.unreadable);
    run.follow(&page.people).await?;
    // A homeserver that repeats its token has nothing more.
    let next = end.filter(|end| !page.ended && !ended && *end != gap.from_token);
    let closed = next.is_none();
    gap.pages.all += 1;
    gap.pages.empty += i32::from(empty);
    let received = run.inbox.fill(gap, &page.messages, &page.redacted, next).await?;
    run.metrics.received.inc_by(received);
    Ok(closed)
}

/// What is newer than the events behind the gap comes with a sync, and in its place. `last` is a page
/// that nothing follows.
async fn leave_out_newer(
    run: &Run,
    gap: &mut Gap,
    events: &mut Vec<Event>,
    last: bool,
) -> Result<(), BridgeError> {
    let behind = run.inbox.first_behind(gap).await?;
    let is_behind = |event: &Event| event_id(event) == behind;
    match events.iter().position(is_behind) {
        Some(at) => {
            events.drain(..=at);
        }
        None if behind.is_some() && !last => {
            events.clear();
            return Ok(());
        }
        None => {}
    }
    gap.from_newest = false;
    Ok(())
}

/// It will never be filled: the room must not wait for it.
async fn abandon(run: &Run, mut gap: Gap, reason: &str) -> Result<Next, BridgeError> {
    warn!(room = gap.room_id, "a gap cannot be filled, messages may be missing: {reason}");
    run.metrics.gaps_abandoned.inc();
    run.inbox.fill(&mut gap, &[], &[], None).await?;
    run.wake.delivery.notify_one();
    Ok(Next::Again)
}
