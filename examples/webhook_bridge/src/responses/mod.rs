//! Lenient parsing of the homeserver's responses: only the fields in use are read, and a malformed
//! entry is logged and skipped without failing the rest.

mod keys;
mod raw_json;
mod rooms;
mod sync;

pub use self::{
    keys::KeysQueryResponse,
    raw_json::{Fields, RawJson},
    rooms::{AccountData, Members, Page},
    sync::{Event, Invitation, Room, Sync},
};
use ruma::api::{
    SupportedVersions,
    client::{
        account::whoami,
        config::{get_global_account_data, set_global_account_data},
        discovery::get_supported_versions,
        keys::{claim_keys, get_keys, upload_keys, upload_signatures, upload_signing_keys},
        membership::{get_member_events, join_room_by_id, join_room_by_id_or_alias, leave_room},
        message::{get_message_events, send_message_event},
        session::login,
        sync::sync_events,
        to_device::send_event_to_device,
    },
};

/// A response that the bridge parses.
pub trait ParseResponse: Sized {
    /// The error names what is missing.
    fn read(body: RawJson<'_>, fields: &Fields<'_>) -> Result<Self, &'static str>;

    /// The value for a body without fields, if such a body is valid.
    fn from_empty() -> Option<Self> {
        None
    }
}

/// Whether a body is empty, or JSON without fields.
pub fn is_empty_body(body: &str) -> bool {
    body.trim().is_empty() || RawJson::parse(body).is_some_and(|body| body.fields().is_none())
}

/// A response whose success status is all that matters.
pub struct Acknowledged;

impl ParseResponse for Acknowledged {
    fn read(_: RawJson<'_>, _: &Fields<'_>) -> Result<Self, &'static str> {
        Ok(Self)
    }

    fn from_empty() -> Option<Self> {
        Some(Self)
    }
}

/// The response type of a request.
pub trait HasResponse {
    type Response: ParseResponse;
}

macro_rules! responses {
    ($($request:ty => $response:ty,)*) => {$(
        impl HasResponse for $request {
            type Response = $response;
        }
    )*};
}

responses! {
    get_supported_versions::Request => SupportedVersions,
    login::v3::Request => Login,
    whoami::v3::Request => WhoAmI,
    sync_events::v3::Request => Sync,
    get_message_events::v3::Request => Page,
    get_member_events::v3::Request => Members,
    join_room_by_id::v3::Request => Acknowledged,
    join_room_by_id_or_alias::v3::Request => Acknowledged,
    leave_room::v3::Request => Acknowledged,
    get_global_account_data::v3::Request => AccountData,
    set_global_account_data::v3::Request => Acknowledged,
    get_keys::v3::Request => KeysQueryResponse,
    claim_keys::v3::Request => claim_keys::v3::Response,
    upload_keys::v3::Request => upload_keys::v3::Response,
    upload_signatures::v3::Request => upload_signatures::v3::Response,
    upload_signing_keys::v3::Request => upload_signing_keys::v3::Response,
    send_event_to_device::v3::Request => send_event_to_device::v3::Response,
    send_message_event::v3::Request => send_message_event::v3::Response,
}

impl ParseResponse for SupportedVersions {
    fn read(_: RawJson<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
        if fields.get("versions").is_none() {
            return Err("it names no versions");
        }
        let versions = fields.list("versions").into_iter();
        let versions: Vec<String> = versions.filter_map(|one| one.value("versions")).collect();
        let features = fields.object("unstable_features").into_iter();
        let features = features.filter_map(|(name, on)| Some((name, on.value("a feature")?)));
        Ok(Self::from_parts(&versions, &features.collect()))
    }
}

pub struct Login {
    pub user_id: String,
    pub access_token: String,
    pub device_id: String,
}

impl ParseResponse for Login {
    fn read(_: RawJson<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
        Ok(Self {
            user_id: fields.value("user_id").ok_or("it has no user_id")?,
            access_token: fields.value("access_token").ok_or("it has no access_token")?,
            device_id: fields.value("device_id").ok_or("it has no device_id")?,
        })
    }
}

pub struct WhoAmI {
    pub user_id: String,
    pub device_id: Option<String>,
}

impl ParseResponse for WhoAmI {
    fn read(_: RawJson<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
        Ok(Self {
            user_id: fields.value("user_id").ok_or("it has no user_id")?,
            device_id: fields.value("device_id"),
        })
    }
}
