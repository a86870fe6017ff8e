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
        let end = fields.value("end").filter(|token: &String| !token.contains('\0'));
        Ok(Self { events: events(fields.list("chunk")), end })
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
