//! Fills gaps: what a sync left out is fetched from `/messages`, page by page, from new to old.

use ruma::{RoomId, api::client::message::get_message_events::v3::Request, uint};
use tracing::{info, warn};

use crate::{
    errors::BridgeError, inbox::Gap, retry::Delays, run::Run, sync::timeline_filter,
    timeline::read_page,
};

/// Fill gaps until stopped.
pub async fn run(run: &Run) -> Result<(), BridgeError> {
    let mut delays = Delays::new();
    while !run.stop.is_cancelled() {
        let mut all_filled = true;
        // Only the oldest of each room matters, but order is by age anyway.
        for gap in run.inbox.gaps().await? {
            all_filled &= fill(run, gap).await?;
            if run.stop.is_cancelled() {
                return Ok(());
            }
        }
        let pause = async {
            if all_filled {
                delays.reset();
                run.wake.gaps.notified().await;
            } else {
                tokio::time::sleep(delays.next(None)).await;
            }
        };
        run.stop.run_until_cancelled(pause).await;
    }
    Ok(())
}

/// Fill one gap; `false` if the homeserver must be asked again later.
async fn fill(run: &Run, mut gap: Gap) -> Result<bool, BridgeError> {
    loop {
        let Ok(room_id) = RoomId::parse(&gap.room_id) else {
            return abandon(run, gap, "its room id is malformed").await;
        };
        let mut request = Request::backward(room_id).from(gap.from_token.clone());
        request.to = gap.to_token.clone();
        request.limit = uint!(100);
        request.filter = timeline_filter();
        let answer = match run.stop.run_until_cancelled(run.homeserver.send(request)).await {
            None => return Ok(true),
            Some(Ok(answer)) => answer,
            Some(Err(error)) if error.revoked_token().is_some() => return Err(error.into()),
            Some(Err(error)) if error.is_temporary() => {
                warn!("a gap cannot be filled yet: {error}");
                return Ok(false);
            }
            Some(Err(error)) => return abandon(run, gap, &error.to_string()).await,
        };
        let to_own_join = gap.to_token.is_none();
        let me = &run.config.user_id;
        let page = read_page(&answer.chunk, me, gap.stop_event_id.as_deref(), to_own_join);
        run.crypto.track(&page.people).await?;
        run.crypto.send_outgoing().await?;
        // A homeserver that repeats its token has nothing more.
        let next = answer.end.filter(|end| !page.ended && *end != gap.from_token);
        let closed = next.is_none();
        let received = run.inbox.fill(&mut gap, &page.messages, &page.redacted, next).await?;
        run.metrics.received.inc_by(received);
        if closed {
            info!(room = gap.room_id, messages = gap.filled, "a gap is filled");
            run.wake.delivery.notify_one();
            return Ok(true);
        }
    }
}

/// Nobody will ever answer: the room must not wait for it.
async fn abandon(run: &Run, mut gap: Gap, reason: &str) -> Result<bool, BridgeError> {
    warn!(room = gap.room_id, "a gap cannot be filled, messages may be missing: {reason}");
    run.metrics.gaps_abandoned.inc();
    run.inbox.fill(&mut gap, &[], &[], None).await?;
    run.wake.delivery.notify_one();
    Ok(true)
}
