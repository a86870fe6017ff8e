//! Answers about one room, and account data.

use ruma::{OwnedUserId, UserId};

use super::{Answer, Event, Fields, Piece, sync::events};

/// A page of a room's history.
pub struct Page {
    pub events: Vec<Event>,
    /// Where the next one begins.
    pub end: Option<String>,
}

impl Answer for Page {
    fn read(_: Piece<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
        // It is no end of a history if it cannot be read.
        let chunk = fields.get("chunk").and_then(Piece::elements).ok_or("it has no events")?;
        let end =
            fields.get("end").map(|end| end.read().filter(|token: &String| !token.contains('\0')));
        if end == Some(None) {
            return Err("where its history goes on is malformed");
        }
        Ok(Self { events: events(chunk), end: end.flatten() })
    }
}

/// Who is in a room, or invited.
pub struct Members(pub Vec<OwnedUserId>);

impl Answer for Members {
    fn read(_: Piece<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
        if fields.get("chunk").is_none() {
            return Err("it has no members");
        }
        let member = |event: Piece<'_>| {
            let event = event.object("a member");
            let membership: String = event.object("content").value("membership")?;
            let user: String = event.value("state_key")?;
            let is_member = matches!(membership.as_str(), "join" | "invite");
            UserId::parse(user).ok().filter(|_| is_member)
        };
        Ok(Self(fields.list("chunk").into_iter().filter_map(member).collect()))
    }
}

/// The content, as it came.
pub struct AccountData(pub String);

impl Answer for AccountData {
    fn read(body: Piece<'_>, _: &Fields<'_>) -> Result<Self, &'static str> {
        Ok(Self(body.json().to_owned()))
    }
}
