//! The form of log lines.

use super::{
    Args,
    values::{invalid, non_empty},
};
use crate::errors::BridgeError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    /// An object per line.
    Json,
}

impl TryFrom<&Args> for LogFormat {
    type Error = BridgeError;

    fn try_from(args: &Args) -> Result<Self, BridgeError> {
        match non_empty(args.log_format.clone()).as_deref() {
            None | Some("text") => Ok(Self::Text),
            Some("json") => Ok(Self::Json),
            Some(other) => {
                Err(invalid(format!("BRIDGE_LOG_FORMAT is {other:?}: set it to text or json")))
            }
        }
    }
}
