//! Accepts invitations, and fetches the members of encrypted rooms whose devices are to be followed.

use std::time::Duration;

use ruma::{
    OwnedUserId, RoomId,
    api::client::membership::{get_member_events, join_room_by_id},
    events::room::member::MembershipState,
};
use tracing::{info, warn};

use crate::{errors::BridgeError, retry::Delays, run::Run};

/// Joining over federation can take a server minutes.
const JOIN_PATIENCE: Duration = Duration::from_secs(180);

/// Work through invitations and member lists until stopped.
pub async fn run(run: &Run) -> Result<(), BridgeError> {
    let mut delays = Delays::new();
    while !run.stop.is_cancelled() {
        let mut all_done = true;
        for room in run.inbox.invitations().await? {
            all_done &= join(run, &room).await?;
        }
        for room in run.inbox.rooms_without_members().await? {
            all_done &= fetch_members(run, &room).await?;
        }
        let pause = async {
            if all_done {
                delays.reset();
                run.wake.rooms.notified().await;
            } else {
                tokio::time::sleep(delays.next(None)).await;
            }
        };
        run.stop.run_until_cancelled(pause).await;
    }
    Ok(())
}

/// Accept an invitation; `false` if it must be tried again.
async fn join(run: &Run, room: &str) -> Result<bool, BridgeError> {
    let Ok(room_id) = RoomId::parse(room) else {
        run.inbox.forget_invitation(room).await?;
        return Ok(true);
    };
    let request = join_room_by_id::v3::Request::new(room_id);
    let attempt = run.homeserver.send_within(request, JOIN_PATIENCE);
    match run.stop.run_until_cancelled(attempt).await {
        None => return Ok(true),
        Some(Ok(_)) => info!(room, "joined"),
        Some(Err(error)) if error.revoked_token().is_some() => return Err(error.into()),
        Some(Err(error)) if error.is_temporary() => {
            warn!(room, "an invitation cannot be accepted yet: {error}");
            return Ok(false);
        }
        Some(Err(error)) => warn!(room, "an invitation cannot be accepted: {error}"),
    }
    run.inbox.forget_invitation(room).await?;
    Ok(true)
}

/// Follow the devices of a room's members; `false` if it must be tried again.
async fn fetch_members(run: &Run, room: &str) -> Result<bool, BridgeError> {
    let Ok(room_id) = RoomId::parse(room) else {
        run.inbox.members_known(room).await?;
        return Ok(true);
    };
    let mut request = get_member_events::v3::Request::new(room_id);
    request.not_membership = Some(MembershipState::Leave);
    let answer = match run.stop.run_until_cancelled(run.homeserver.send(request)).await {
        None => return Ok(true),
        Some(Ok(answer)) => answer,
        Some(Err(error)) if error.revoked_token().is_some() => return Err(error.into()),
        Some(Err(error)) => {
            warn!(room, "the members cannot be fetched: {error}");
            let temporary = error.is_temporary();
            if !temporary {
                run.inbox.members_known(room).await?;
            }
            return Ok(!temporary);
        }
    };
    let members: Vec<OwnedUserId> = answer
        .chunk
        .iter()
        .filter_map(|event| event.deserialize().ok())
        .filter(|event| {
            matches!(event.membership(), MembershipState::Join | MembershipState::Invite)
        })
        .map(|event| event.state_key().to_owned())
        .collect();
    run.crypto.track(&members).await?;
    run.inbox.members_known(room).await?;
    run.crypto.send_outgoing().await?;
    Ok(true)
}
