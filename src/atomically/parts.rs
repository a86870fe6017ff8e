//! A save so large that it comes in parts: one is staged while the server takes the one before.

use std::{future::Future, time::Duration};

use tokio::task::spawn_blocking;

use super::Scope;
use crate::{Error, batch::Batch, writer::LentLane};

/// Writes the parts as one transaction, once the lane is ours. Each is staged on a thread of its own.
pub(crate) async fn write<P>(
    lane: impl Future<Output = Result<LentLane, Error>>,
    parts: impl Iterator<Item = P>,
) -> Result<(), Error>
where
    P: FnOnce() -> Result<Batch, Error> + Send + 'static,
{
    // Each answer has its time limit; the whole takes as long as it is large.
    let no_limit = Duration::MAX;
    let save = async {
        let scope = Scope::current().ok_or(Error::StoreClosed)?;
        let mut parts = parts.map(spawn_blocking);
        let mut next = parts.next();
        while let Some(part) = next.take() {
            scope.write(|_| async { part.await.map_err(|_| Error::StoreClosed)? }).await?;
            // The last one goes with the commit.
            next = parts.next();
            if next.is_some() {
                scope.flush().await?;
            }
        }
        Ok(())
    };
    Scope::run(lane.await?, no_limit, save, |error| error).await
}
