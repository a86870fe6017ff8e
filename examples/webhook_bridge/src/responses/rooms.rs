//! Responses about one room, and account data.

use ruma::{OwnedUserId, UserId};

use super::{Event, Fields, ParseResponse, RawJson, sync::events};

/// A page of a room's history.
pub struct Page {
    pub events: Vec<Event>,
    /// The token of the next page.
    pub end: Option<String>,
}

impl ParseResponse for Page {
    fn read(_: RawJson<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
        // A malformed page must not be mistaken for the end of the history.
        let chunk = fields.get("chunk").and_then(RawJson::elements).ok_or("it has no events")?;
        let end =
            fields.get("end").map(|end| end.read().filter(|token: &String| !token.contains('\0')));
        if end == Some(None) {
            return Err("its end token is malformed");
        }
        Ok(Self { events: events(chunk), end: end.flatten() })
    }
}

/// The members of a room.
pub struct Members {
    pub joined: Vec<OwnedUserId>,
    pub invited: Vec<OwnedUserId>,
}

impl ParseResponse for Members {
    fn read(_: RawJson<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
        if fields.get("chunk").is_none() {
            return Err("it has no members");
        }
        let member = |event: RawJson<'_>| {
            let event = event.object("a member");
            let membership: String = event.object("content").value("membership")?;
            let user: String = event.value("state_key")?;
            Some((membership, UserId::parse(user).ok()?))
        };
        let members: Vec<_> = fields.list("chunk").into_iter().filter_map(member).collect();
        let with = |wanted: &str| {
            let members = members.iter().filter(|(membership, _)| membership == wanted);
            members.map(|(_, user)| user.clone()).collect()
        };
        Ok(Self { joined: with("join"), invited: with("invite") })
    }
}

/// The content as received.
pub struct AccountData(pub String);

impl ParseResponse for AccountData {
    fn read(body: RawJson<'_>, _: &Fields<'_>) -> Result<Self, &'static str> {
        Ok(Self(body.json().to_owned()))
    }
}
