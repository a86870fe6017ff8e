//! Accepts invitations, and fetches the members of encrypted rooms whose devices are to be followed.

use std::time::Duration;

use ruma::{
    RoomId,
    api::client::membership::{get_member_events, join_room_by_id},
    events::room::member::MembershipState,
};
use tracing::{info, warn};

use crate::{
    errors::BridgeError,
    refusal::{Failing, Refusals},
    retry::Delays,
    run::Run,
    turns::{Next, Turns},
};

/// Joining over federation can take a server minutes; but one that hangs must not hold up others, so
/// the first attempt is short.
const JOIN_LIMIT: Duration = Duration::from_secs(180);
const FIRST_JOIN_LIMIT: Duration = Duration::from_secs(20);
/// Invitations that are accepted at once.
const JOINS: usize = 8;
/// Member lists that are fetched at once.
const MEMBER_LISTS: usize = 4;

/// Accept invitations until stopped.
pub async fn accept_invitations(run: &Run) -> Result<(), BridgeError> {
    let turns = Turns {
        stop: &run.stop,
        news: &run.wake.invitations,
        at_once: JOINS,
        delays: Delays::after_refusals,
    };
    let failing = Failing::default();
    let list = async || run.inbox.invitations().await;
    turns.run(list, async |room: &str| join(run, &failing, room).await).await
}

/// Accept an invitation. A no may pass, for federation and a homeserver's workers lag behind: it is
/// tried again for the time that refusals are given, whatever the no is. It may be a foreign server's
/// that the homeserver passes on, so it says nothing of our own token: that is left to the sync.
async fn join(run: &Run, failing: &Failing, room: &str) -> Result<Next, BridgeError> {
    let (Some(age), Ok(room_id)) = (run.inbox.invitation_age(room).await?, RoomId::parse(room))
    else {
        // It was withdrawn.
        failing.ended(room);
        return Ok(Next::Done);
    };
    let request = join_room_by_id::v3::Request::new(room_id);
    let limit = if failing.has(room) { JOIN_LIMIT } else { FIRST_JOIN_LIMIT };
    match run.stop.run_until_cancelled(run.homeserver.send_within(request, limit)).await {
        None => return Ok(Next::Done),
        Some(Ok(_)) => info!(room, "joined"),
        Some(Err(error)) => {
            // It may have been withdrawn meanwhile, and have come again.
            let failed = failing.again(room, run.metrics.synced_lately()).min(age);
            if failed < run.config.refusal_wait {
                warn!(room, "an invitation cannot be accepted yet: {error}");
                return Ok(Next::Later(error.wish()));
            }
            warn!(room, "an invitation cannot be accepted, and is given up: {error}");
            run.metrics.invitations_abandoned.inc();
        }
    }
    failing.ended(room);
    run.inbox.forget_invitation(room).await?;
    Ok(Next::Done)
}

/// Fetch member lists until stopped.
pub async fn fetch_members(run: &Run) -> Result<(), BridgeError> {
    let turns = Turns {
        stop: &run.stop,
        news: &run.wake.members,
        at_once: MEMBER_LISTS,
        delays: Delays::new,
    };
    let refusals = Refusals::default();
    let list = async || run.inbox.rooms_without_members().await;
    turns.run(list, async |room: &str| members_of(run, &refusals, room).await).await
}

/// Follow the devices of a room's members.
async fn members_of(run: &Run, refusals: &Refusals, room: &str) -> Result<Next, BridgeError> {
    let Ok(room_id) = RoomId::parse(room) else {
        run.inbox.members_known(room).await?;
        return Ok(Next::Done);
    };
    let mut request = get_member_events::v3::Request::new(room_id);
    request.not_membership = Some(MembershipState::Leave);
    match run.stop.run_until_cancelled(run.homeserver.send(request)).await {
        None => return Ok(Next::Done),
        Some(Ok(members)) => run.follow(&members.0).await?,
        Some(Err(error)) if error.ends_run() => return Err(error.into()),
        Some(Err(error)) if error.is_beside_the_point() || refusals.again(room) => {
            warn!(room, "the members cannot be fetched yet: {error}");
            return Ok(Next::Later(error.wish()));
        }
        Some(Err(error)) => warn!(room, "the members cannot be fetched: {error}"),
    }
    run.inbox.members_known(room).await?;
    Ok(Next::Done)
}
