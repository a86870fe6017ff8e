//! Accepts invitations, and fetches the members of rooms, to track their devices and to label rooms.

use std::time::Duration;

use ruma::{
    OwnedRoomId, OwnedServerName, RoomId, UserId,
    api::client::membership::{
        get_member_events, join_room_by_id, join_room_by_id_or_alias, leave_room,
    },
    events::room::member::MembershipState,
};
use tracing::{info, warn};

use crate::{
    allow_list::AllowList,
    errors::BridgeError,
    inbox::Pending,
    refusal::{FailureTimers, HomeserverError, Refusals},
    responses::Acknowledged,
    retry::Delays,
    run::Run,
    scheduler::{Next, Scheduler},
};

/// Joining over federation can take minutes.
const JOIN_TIMEOUT: Duration = Duration::from_secs(180);
/// The first attempt is short, so that a hanging join does not delay others.
const FIRST_JOIN_TIMEOUT: Duration = Duration::from_secs(20);
const CONCURRENT_JOINS: usize = 8;
const CONCURRENT_MEMBER_LISTS: usize = 4;

/// Accept invitations until stopped.
pub async fn accept_invitations(run: &Run) -> Result<(), BridgeError> {
    let scheduler = Scheduler {
        stop: &run.stop,
        wakeup: &run.wake.invitations,
        concurrency: CONCURRENT_JOINS,
        delays: Delays::after_refusals,
    };
    let failures = FailureTimers::default();
    let list = async || run.inbox.invitations().await;
    scheduler.run(list, async |room: &str| join(run, &failures, room).await).await
}

/// Accept an invitation. Any error is retried until the retry timeout, because federation and a
/// homeserver's workers lag. A 401 is retried, too: it may come from the room's server, so it does not
/// mean that the bot's own token is refused; the sync detects that.
async fn join(run: &Run, failures: &FailureTimers, room: &str) -> Result<Next, BridgeError> {
    let (Some(pending), Ok(room_id)) = (run.inbox.pending(room).await?, RoomId::parse(room)) else {
        // The invitation was withdrawn.
        failures.reset(room);
        return Ok(Next::Done);
    };
    let limit = if failures.has(room) { JOIN_TIMEOUT } else { FIRST_JOIN_TIMEOUT };
    let step = Step::choose(&pending, run.config.invite_allow.as_ref());
    let (done, answer) = (step.done(), step.take(run, room_id, limit));
    match run.stop.run_until_cancelled(answer).await {
        None => return Ok(Next::Done),
        Some(Ok(_)) => {
            info!(room, inviter = pending.inviter, "{done}");
            run.metrics.invitations_declined.increment((step == Step::Decline).into());
        }
        Some(Err(error)) => {
            // The age is smaller if the invitation was withdrawn and sent again meanwhile.
            let failed =
                failures.record_failure(room, run.metrics.synced_recently()).min(pending.age);
            if failed < run.config.retry_timeout {
                warn!(room, "an invitation cannot be accepted yet: {error}");
                return Ok(Next::Backoff(error.retry_after()));
            }
            warn!(room, "invitation abandoned, because it cannot be accepted: {error}");
            run.metrics.invitations_abandoned.increment(1);
        }
    }
    failures.reset(room);
    run.inbox.forget_invitation(room).await?;
    Ok(Next::Done)
}

/// What follows from an invitation.
#[derive(PartialEq, Eq)]
enum Step {
    Join,
    /// The replacement of an upgraded room, through this server.
    Follow(OwnedServerName),
    /// The inviter is not on the allow-list.
    Decline,
}

impl Step {
    fn choose(pending: &Pending, allowed: Option<&AllowList>) -> Self {
        let upgraded_by = pending.upgraded_by.as_deref().and_then(|user| UserId::parse(user).ok());
        if let Some(user) = upgraded_by {
            return Self::Follow(user.server_name().to_owned());
        }
        let inviter = pending.inviter.as_deref().unwrap_or_default();
        match allowed {
            Some(list) if !list.allows(inviter) => Self::Decline,
            _ => Self::Join,
        }
    }

    fn done(&self) -> &'static str {
        match self {
            Self::Join => "joined",
            Self::Follow(_) => "joined the replacement of an upgraded room",
            Self::Decline => "declined an invitation: the inviter is not in BRIDGE_INVITE_ALLOW",
        }
    }

    async fn take(
        &self,
        run: &Run,
        room_id: OwnedRoomId,
        limit: Duration,
    ) -> Result<Acknowledged, HomeserverError> {
        let homeserver = &run.homeserver;
        match self {
            Self::Join => {
                homeserver.send_within(join_room_by_id::v3::Request::new(room_id), limit).await
            }
            Self::Follow(server) => {
                let mut request = join_room_by_id_or_alias::v3::Request::new(room_id.into());
                request.via = vec![server.clone()];
                homeserver.send_within(request, limit).await
            }
            Self::Decline => {
                homeserver.send_within(leave_room::v3::Request::new(room_id), limit).await
            }
        }
    }
}

/// Fetch member lists until stopped.
pub async fn fetch_members(run: &Run) -> Result<(), BridgeError> {
    let scheduler = Scheduler {
        stop: &run.stop,
        wakeup: &run.wake.members,
        concurrency: CONCURRENT_MEMBER_LISTS,
        delays: Delays::new,
    };
    let refusals = Refusals::default();
    let list = async || run.inbox.rooms_without_members(run.config.labels.use_members()).await;
    scheduler.run(list, async |room: &str| fetch_members_of(run, &refusals, room).await).await
}

/// Fetch a room's members, and track their devices.
async fn fetch_members_of(run: &Run, refusals: &Refusals, room: &str) -> Result<Next, BridgeError> {
    let Ok(room_id) = RoomId::parse(room) else {
        run.inbox.members_known(room).await?;
        return Ok(Next::Done);
    };
    let mut request = get_member_events::v3::Request::new(room_id);
    request.not_membership = Some(MembershipState::Leave);
    match run.stop.run_until_cancelled(run.homeserver.send(request)).await {
        None => return Ok(Next::Done),
        Some(Ok(members)) => {
            // Only those whose devices are needed.
            let known = run.inbox.known_rooms(&[room.to_owned()]).await?;
            if known.get(room).is_some_and(|room| room.encrypted) {
                run.track(&[&*members.joined, &*members.invited].concat()).await?;
            }
            if let Some(ghost) = run.config.labels.first_ghost(&members.joined) {
                run.inbox.record_ghost(room, ghost).await?;
            }
        }
        Some(Err(error)) if error.ends_run() => return Err(error.into()),
        Some(Err(error)) if error.is_unrelated() || refusals.record_refusal(room) => {
            warn!(room, "the members cannot be fetched yet: {error}");
            return Ok(Next::Backoff(error.retry_after()));
        }
        Some(Err(error)) => warn!(room, "the members cannot be fetched: {error}"),
    }
    run.inbox.members_known(room).await?;
    Ok(Next::Done)
}
