//! Prunes old events at startup and hourly.

use std::time::Duration;

use tokio::time::sleep;
use tracing::debug;

use crate::{errors::BridgeError, run::Run};

const INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Prune now, and every hour until stopped.
pub async fn run(run: &Run) -> Result<(), BridgeError> {
    loop {
        let api_max_age = run.config.api.as_ref().map(|api| api.max_age);
        let pruned = run.inbox.prune().await? + run.inbox.prune_sealed(api_max_age).await?;
        if pruned > 0 {
            debug!(pruned, "pruned old events and messages");
        }
        if run.stop.run_until_cancelled(sleep(INTERVAL)).await.is_none() {
            return Ok(());
        }
    }
}
