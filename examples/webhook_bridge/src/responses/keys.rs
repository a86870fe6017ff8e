//! Responses that are passed to the encryption machine.

use std::collections::BTreeMap;

use ruma::{
    OwnedDeviceId, OwnedUserId, UserId,
    api::client::{
        keys::{claim_keys, get_keys, upload_keys, upload_signatures, upload_signing_keys},
        message::send_message_event,
        to_device::send_event_to_device,
    },
    encryption::CrossSigningKey,
    serde::Raw,
};

use super::{Fields, ParseResponse, RawJson, raw_json::log_malformed, sync::key_counts};

/// The response to a key query.
pub struct KeysQueryResponse(pub get_keys::v3::Response);

impl ParseResponse for KeysQueryResponse {
    fn read(_: RawJson<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
        let mut response = get_keys::v3::Response::new();
        response.failures = failures(fields);
        response.device_keys = of_users(fields.object("device_keys"), |devices| {
            let devices = devices.fields()?.into_iter();
            let device = |(id, keys): (String, RawJson<'_>)| {
                Some((OwnedDeviceId::from(id), keys.raw_object("a device's keys")?))
            };
            Some(devices.filter_map(device).collect())
        });
        response.master_keys = cross_signing(fields, "master_keys");
        response.self_signing_keys = cross_signing(fields, "self_signing_keys");
        response.user_signing_keys = cross_signing(fields, "user_signing_keys");
        Ok(Self(response))
    }
}

fn cross_signing(fields: &Fields<'_>, name: &str) -> BTreeMap<OwnedUserId, Raw<CrossSigningKey>> {
    of_users(fields.object(name), |key| key.raw_object(name))
}

fn failures(fields: &Fields<'_>) -> BTreeMap<String, serde_json::Value> {
    let servers = fields.object("failures").into_iter().map(|(server, _)| server);
    servers.map(|server| (server, serde_json::Value::Null)).collect()
}

/// Read a map from user ids; malformed entries are skipped and logged.
fn of_users<T>(
    users: Fields<'_>,
    read: impl Fn(RawJson<'_>) -> Option<T>,
) -> BTreeMap<OwnedUserId, T> {
    let one = |(user, json): (String, RawJson<'_>)| {
        let read = UserId::parse(user).ok().zip(read(json));
        if read.is_none() {
            log_malformed("a user's keys");
        }
        read
    };
    users.into_iter().filter_map(one).collect()
}

impl ParseResponse for claim_keys::v3::Response {
    fn read(_: RawJson<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
        let claimed = of_users(fields.object("one_time_keys"), |devices| {
            let device = |(id, keys): (String, RawJson<'_>)| {
                let keys = keys.object("a device's keys").into_iter();
                let keys = keys
                    .filter_map(|(id, key)| Some((id.try_into().ok()?, key.raw_object("a key")?)));
                (OwnedDeviceId::from(id), keys.collect())
            };
            Some(devices.fields()?.into_iter().map(device).collect())
        });
        let mut response = Self::new(claimed);
        response.failures = failures(fields);
        Ok(response)
    }
}

impl ParseResponse for upload_keys::v3::Response {
    fn read(_: RawJson<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
        Ok(Self::new(key_counts(fields.object("one_time_key_counts"))))
    }
}

impl ParseResponse for upload_signatures::v3::Response {
    fn read(_: RawJson<'_>, _: &Fields<'_>) -> Result<Self, &'static str> {
        Ok(Self::new())
    }

    fn from_empty() -> Option<Self> {
        Some(Self::new())
    }
}

impl ParseResponse for upload_signing_keys::v3::Response {
    fn read(_: RawJson<'_>, _: &Fields<'_>) -> Result<Self, &'static str> {
        Ok(Self::new())
    }

    fn from_empty() -> Option<Self> {
        Some(Self::new())
    }
}

impl ParseResponse for send_event_to_device::v3::Response {
    fn read(_: RawJson<'_>, _: &Fields<'_>) -> Result<Self, &'static str> {
        Ok(Self::new())
    }

    fn from_empty() -> Option<Self> {
        Some(Self::new())
    }
}

impl ParseResponse for send_message_event::v3::Response {
    fn read(_: RawJson<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
        let id: String = fields.value("event_id").ok_or("it has no event_id")?;
        Ok(Self::new(id.try_into().map_err(|_| "its event_id is malformed")?))
    }
}
