//! Room keys in bounded memory: the trait gives out all of them, or those of a room, at once.

use matrix_sdk_common::ruma::RoomId;
use matrix_sdk_crypto::olm::InboundGroupSession;

use super::{PostgresCryptoStore, inbound_group_sessions};
use crate::Error;

impl PostgresCryptoStore {
    /// The next room keys behind the one given, or the first ones: up to `limit` of them, and none behind
    /// the last one.
    ///
    /// Their order means nothing and stays as it is, so that a walk over all of them can be interrupted and
    /// continued. A key that comes meanwhile may be before the place where the walk is, and is not seen.
    ///
    /// # Errors
    ///
    /// [`Error::CorruptRow`], [`Error::Database`] and others.
    ///
    /// ```no_run
    /// # async fn example(
    /// #     store: matrix_sdk_postgres::PostgresCryptoStore,
    /// # ) -> Result<(), matrix_sdk_postgres::Error> {
    /// let mut count = 0;
    /// let mut page = store.room_keys_after(None, 500).await?;
    /// while let Some(last) = page.last() {
    ///     count += page.len();
    ///     page = store.room_keys_after(Some((last.room_id(), last.session_id())), 500).await?;
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn room_keys_after(
        &self,
        session: Option<(&RoomId, &str)>,
        limit: usize,
    ) -> Result<Vec<InboundGroupSession>, Error> {
        inbound_group_sessions::after(&*self.operation()?, session, limit).await
    }
}
