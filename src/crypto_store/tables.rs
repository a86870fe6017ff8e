//! The tables that operators' functions name.

pub(crate) use super::{
    account_data::ACCOUNT_DATA, devices::DEVICES, inbound_group_sessions::INBOUND_SESSIONS,
    key_requests::KEY_REQUESTS, message_hashes::MESSAGE_HASHES, olm_sessions::OLM_SESSIONS,
    outbound_group_sessions::OUTBOUND_SESSIONS, withheld::WITHHELD_SESSIONS,
};
