//! What of an account belongs to its device, and goes when it begins with a new one.

use super::{
    account_data::{ACCOUNT_DATA, Item},
    key_requests::KEY_REQUESTS,
    message_hashes::MESSAGE_HASHES,
    olm_sessions::OLM_SESSIONS,
    outbound_group_sessions::OUTBOUND_SESSIONS,
    sync_tokens::SYNC_TOKENS,
    tracked_users::TRACKED_USERS,
};
use crate::postgres::statement::Table;

/// A table with rows of the device.
pub(crate) struct DeviceRows {
    pub(crate) table: &'static Table,
    /// The only one of its items that is the device's; all rows if it is `None`.
    item: Option<Item>,
}

impl DeviceRows {
    /// The SQL condition that finds the rows, behind one for the account.
    pub(crate) fn condition(&self) -> String {
        self.item.map_or_else(String::new, |item| format!(" AND item = {}", item as i16))
    }
}

const fn all(table: &'static Table) -> DeviceRows {
    DeviceRows { table, item: None }
}

/// The row without which an account has no device.
pub(crate) const OLM_ACCOUNT: DeviceRows =
    DeviceRows { table: &ACCOUNT_DATA, item: Some(Item::OlmAccount) };

pub(crate) static OF_THE_DEVICE: [DeviceRows; 7] = [
    OLM_ACCOUNT,
    all(&OLM_SESSIONS),
    all(&OUTBOUND_SESSIONS),
    all(&MESSAGE_HASHES),
    all(&KEY_REQUESTS),
    all(&TRACKED_USERS),
    all(&SYNC_TOKENS),
];
