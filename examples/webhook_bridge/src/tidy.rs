//! Forgets what was done long ago, while the bridge runs and not only when it starts.

use std::time::Duration;

use tokio::time::sleep;
use tracing::debug;

use crate::{errors::BridgeError, run::Run};

const EVERY: Duration = Duration::from_secs(60 * 60);

/// Forget now, and every hour until stopped.
pub async fn run(run: &Run) -> Result<(), BridgeError> {
    loop {
        let forgotten = run.inbox.prune().await?;
        if forgotten > 0 {
            debug!(forgotten, "forgot old events");
        }
        if run.stop.run_until_cancelled(sleep(EVERY)).await.is_none() {
            return Ok(());
        }
    }
}
