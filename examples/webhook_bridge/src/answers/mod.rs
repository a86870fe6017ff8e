//! The homeserver's answers, read piece by piece: what is used is taken, what of it is malformed is
//! skipped and logged, entry by entry, and what is not used is not looked at.

mod keys;
mod piece;
mod rooms;
mod sync;

pub use self::{
    keys::Queried,
    piece::{Fields, Piece},
    rooms::{AccountData, Members, Page},
    sync::{Event, Room, Sync},
};
use ruma::api::{
    SupportedVersions,
    client::{
        account::whoami,
        config::{get_global_account_data, set_global_account_data},
        discovery::get_supported_versions,
        keys::{claim_keys, get_keys, upload_keys, upload_signatures},
        membership::{get_member_events, join_room_by_id},
        message::{get_message_events, send_message_event},
        session::login,
        sync::sync_events,
        to_device::send_event_to_device,
    },
};

/// What the bridge takes from an answer.
pub trait Answer: Sized {
    /// An error names what is missing.
    fn read(body: Piece<'_>, fields: &Fields<'_>) -> Result<Self, &'static str>;

    /// What an answer without fields means, if it means anything.
    fn of_nothing() -> Option<Self> {
        None
    }
}

/// Whether a body says nothing: it is empty, or JSON without fields.
pub fn says_nothing(body: &str) -> bool {
    body.trim().is_empty() || Piece::parse(body).is_some_and(|body| body.fields().is_none())
}

/// An answer that says no more than that it was done.
pub struct Done;

impl Answer for Done {
    fn read(_: Piece<'_>, _: &Fields<'_>) -> Result<Self, &'static str> {
        Ok(Self)
    }

    fn of_nothing() -> Option<Self> {
        Some(Self)
    }
}

/// Which answer belongs to a request.
pub trait Answered {
    type Answer: Answer;
}

macro_rules! answers {
    ($($request:ty => $answer:ty,)*) => {$(
        impl Answered for $request {
            type Answer = $answer;
        }
    )*};
}

answers! {
    get_supported_versions::Request => SupportedVersions,
    login::v3::Request => Login,
    whoami::v3::Request => WhoAmI,
    sync_events::v3::Request => Sync,
    get_message_events::v3::Request => Page,
    get_member_events::v3::Request => Members,
    join_room_by_id::v3::Request => Done,
    get_global_account_data::v3::Request => AccountData,
    set_global_account_data::v3::Request => Done,
    get_keys::v3::Request => Queried,
    claim_keys::v3::Request => claim_keys::v3::Response,
    upload_keys::v3::Request => upload_keys::v3::Response,
    upload_signatures::v3::Request => upload_signatures::v3::Response,
    send_event_to_device::v3::Request => send_event_to_device::v3::Response,
    send_message_event::v3::Request => send_message_event::v3::Response,
}

impl Answer for SupportedVersions {
    fn read(_: Piece<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
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

impl Answer for Login {
    fn read(_: Piece<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
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

impl Answer for WhoAmI {
    fn read(_: Piece<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
        Ok(Self {
            user_id: fields.value("user_id").ok_or("it has no user_id")?,
            device_id: fields.value("device_id"),
        })
    }
}
