//! Notices that a sender withholds a room key from the bot (`m.room_key.withheld`).

use matrix_sdk_common::deserialized_responses::WithheldCode;
use ruma::{events::AnyToDeviceEvent, serde::Raw};
use tracing::warn;

use crate::{
    responses::{Fields, RawJson},
    run::Run,
    timeline::storable,
};

/// The codes of the specification.
const CODES: [WithheldCode; 6] = [
    WithheldCode::Blacklisted,
    WithheldCode::Unverified,
    WithheldCode::Unauthorised,
    WithheldCode::Unavailable,
    WithheldCode::NoOlm,
    WithheldCode::HistoryNotShared,
];

/// A notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withheld {
    pub sender: String,
    /// No room and no session: the sender could not establish an Olm session, so none of its keys come.
    pub room_id: Option<String>,
    pub session_id: Option<String>,
    pub code: &'static str,
}

/// A code's name, because senders may invent others.
pub fn known(code: &WithheldCode) -> &'static str {
    match code {
        WithheldCode::Blacklisted => "m.blacklisted",
        WithheldCode::Unverified => "m.unverified",
        WithheldCode::Unauthorised => "m.unauthorised",
        WithheldCode::Unavailable => "m.unavailable",
        WithheldCode::NoOlm => "m.no_olm",
        WithheldCode::HistoryNotShared => "m.history_not_shared",
        _ => "other",
    }
}

/// All names of codes.
pub fn names() -> impl Iterator<Item = &'static str> {
    CODES.iter().map(known).chain(["other"])
}

/// What a code means, for the log and for the table `events`.
pub fn explain(code: &str) -> String {
    let code = CODES.iter().find(|known| known.as_str() == code);
    let reason = match code {
        Some(WithheldCode::Blacklisted) => "the sender has blocked the bot's device",
        Some(WithheldCode::Unverified) => {
            "the sender excludes devices that are not verified, or not signed by their owner"
        }
        Some(WithheldCode::Unauthorised) => "the sender denies the bot this message",
        Some(WithheldCode::Unavailable) => "the sender does not have the key",
        Some(WithheldCode::NoOlm) => "the sender could not establish a secure channel",
        Some(WithheldCode::HistoryNotShared) => "the room's history is not shared",
        _ => "for an unknown reason",
    };
    format!("its key was withheld: {reason} ({})", code.map_or("other", WithheldCode::as_str))
}

/// The notices of a sync.
pub fn read(events: &[Raw<AnyToDeviceEvent>]) -> Vec<Withheld> {
    let notice = |event: &Raw<AnyToDeviceEvent>| {
        let fields = RawJson::parse(event.json().get())?.fields()?;
        let text = |fields: &Fields<'_>, name: &str| {
            fields.get(name)?.read::<String>().filter(|text| storable(text))
        };
        let content = fields.get("content").and_then(RawJson::fields)?;
        (text(&fields, "type")? == "m.room_key.withheld").then_some(())?;
        Some(Withheld {
            sender: text(&fields, "sender")?,
            room_id: text(&content, "room_id"),
            session_id: text(&content, "session_id"),
            code: known(&WithheldCode::from(text(&content, "code")?)),
        })
    };
    events.iter().filter_map(notice).collect()
}

/// Log and count the notices.
pub fn report(run: &Run, notices: &[Withheld]) {
    for notice in notices {
        let Withheld { sender, room_id, session_id, code } = notice;
        let (room, session) = (room_id.as_deref(), session_id.as_deref());
        warn!(sender, room, session, code, "a message cannot be decrypted: {}", explain(code));
        run.metrics.withheld(code);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{json, value::to_raw_value};

    use super::*;

    #[test]
    fn only_known_codes_are_repeated() {
        let event = |code: &str| {
            let content = json!({"room_id": "!r:x", "session_id": "S", "code": code});
            let event =
                json!({"type": "m.room_key.withheld", "sender": "@a:x", "content": content});
            Raw::from_json(to_raw_value(&event).unwrap())
        };
        let codes = CODES.map(|code| code.as_str().to_owned());
        let read: Vec<_> = codes.iter().map(|code| read(&[event(code)]).remove(0).code).collect();
        assert_eq!(read, codes);
        assert_eq!(super::read(&[event("m.invented\u{1b}[31m")]).len(), 0);
        assert_eq!(super::read(&[event("m.invented")])[0].code, "other");
        assert!(explain("other").ends_with("for an unknown reason (other)"));
        let other = json!({"type": "m.dummy", "sender": "@a:x", "content": {}});
        assert!(super::read(&[Raw::from_json(to_raw_value(&other).unwrap())]).is_empty());
    }
}
