//! Answers that are told to the encryption machine.

use std::collections::BTreeMap;

use ruma::{
    OwnedDeviceId, OwnedUserId, UserId,
    api::client::{
        keys::{claim_keys, get_keys, upload_keys, upload_signatures},
        message::send_message_event,
        to_device::send_event_to_device,
    },
    encryption::CrossSigningKey,
    serde::Raw,
};

use super::{Answer, Fields, Piece, piece::malformed, sync::key_counts};

/// An answer to a key query.
pub struct Queried(pub get_keys::v3::Response);

impl Answer for Queried {
    fn read(_: Piece<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
        let mut answer = get_keys::v3::Response::new();
        answer.failures = failures(fields);
        answer.device_keys = of_users(fields.object("device_keys"), |devices| {
            let devices = devices.fields()?.into_iter();
            let device = |(id, keys): (String, Piece<'_>)| {
                Some((OwnedDeviceId::from(id), keys.raw("a device's keys")?))
            };
            Some(devices.filter_map(device).collect())
        });
        answer.master_keys = cross_signing(fields, "master_keys");
        answer.self_signing_keys = cross_signing(fields, "self_signing_keys");
        answer.user_signing_keys = cross_signing(fields, "user_signing_keys");
        Ok(Self(answer))
    }
}

fn cross_signing(fields: &Fields<'_>, name: &str) -> BTreeMap<OwnedUserId, Raw<CrossSigningKey>> {
    of_users(fields.object(name), |key| key.raw(name))
}

fn failures(fields: &Fields<'_>) -> BTreeMap<String, serde_json::Value> {
    let servers = fields.object("failures").into_iter().map(|(server, _)| server);
    servers.map(|server| (server, serde_json::Value::Null)).collect()
}

/// What each user has, user by user.
fn of_users<T>(
    users: Fields<'_>,
    read: impl Fn(Piece<'_>) -> Option<T>,
) -> BTreeMap<OwnedUserId, T> {
    let one = |(user, piece): (String, Piece<'_>)| {
        let read = UserId::parse(user).ok().zip(read(piece));
        if read.is_none() {
            malformed("a user's keys");
        }
        read
    };
    users.into_iter().filter_map(one).collect()
}

impl Answer for claim_keys::v3::Response {
    fn read(_: Piece<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
        let claimed = of_users(fields.object("one_time_keys"), |devices| {
            let device = |(id, keys): (String, Piece<'_>)| {
                let keys = keys.object("a device's keys").into_iter();
                let keys =
                    keys.filter_map(|(id, key)| Some((id.try_into().ok()?, key.raw("a key")?)));
                (OwnedDeviceId::from(id), keys.collect())
            };
            Some(devices.fields()?.into_iter().map(device).collect())
        });
        let mut answer = Self::new(claimed);
        answer.failures = failures(fields);
        Ok(answer)
    }
}

impl Answer for upload_keys::v3::Response {
    fn read(_: Piece<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
        Ok(Self::new(key_counts(fields.object("one_time_key_counts"))))
    }
}

impl Answer for upload_signatures::v3::Response {
    fn read(_: Piece<'_>, _: &Fields<'_>) -> Result<Self, &'static str> {
        Ok(Self::new())
    }

    fn of_nothing() -> Option<Self> {
        Some(Self::new())
    }
}

impl Answer for send_event_to_device::v3::Response {
    fn read(_: Piece<'_>, _: &Fields<'_>) -> Result<Self, &'static str> {
        Ok(Self::new())
    }

    fn of_nothing() -> Option<Self> {
        Some(Self::new())
    }
}

impl Answer for send_message_event::v3::Response {
    fn read(_: Piece<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
        let id: String = fields.value("event_id").ok_or("it has no event_id")?;
        Ok(Self::new(id.try_into().map_err(|_| "its event_id is malformed")?))
    }
}
