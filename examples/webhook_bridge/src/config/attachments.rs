//! What documents say about attachments.

use super::values::{invalid, non_empty};
use crate::errors::BridgeError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachments {
    /// Name, type and size.
    None,
    /// Their keys, too.
    Keys,
}

pub fn read(value: Option<String>) -> Result<Attachments, BridgeError> {
    match non_empty(value).as_deref() {
        None | Some("none") => Ok(Attachments::None),
        Some("keys") => Ok(Attachments::Keys),
        Some(other) => {
            Err(invalid(format!("BRIDGE_ATTACHMENTS is {other:?}: set it to none or keys")))
        }
    }
}
