//! The label of a room, by the rules of the labels file: by its id, by who invited the bot, or by a
//! ghost (a bridge's puppet of a remote user) among its members.

use std::collections::HashMap;

use ruma::ServerName;

use crate::{
    inbox::{Origin, RoomChange},
    responses::Invitation,
};

/// A label and the rooms that have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelRule {
    pub name: String,
    pub rooms: Vec<String>,
    pub inviters: Vec<String>,
    pub ghosts: Vec<Ghosts>,
}

impl LabelRule {
    fn has_ghost(&self, user: &str) -> bool {
        self.ghosts.iter().any(|ghosts| ghosts.matches(user))
    }
}

/// A pattern of user ids: all with this beginning and this end, the server name with its colon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ghosts {
    pub prefix: String,
    pub server: String,
}

impl Ghosts {
    /// Read `@prefix_`, which is for users of `server`, or `@prefix_*:server`.
    pub fn parse(pattern: &str, server: &ServerName) -> Result<Self, String> {
        let (prefix, server) = match pattern.split_once('*') {
            Some((prefix, server)) => (prefix, server.to_owned()),
            None => (pattern, format!(":{server}")),
        };
        let name = server.strip_prefix(':').map(ServerName::parse);
        if prefix.len() < 2 || !prefix.starts_with('@') || prefix.contains(':') {
            return Err(format!(
                "{pattern:?} is not the beginning of a user id, as in \"@instagram_\""
            ));
        }
        if !matches!(name, Some(Ok(_))) {
            return Err(format!(
                "{pattern:?} has no server after its '*', as in \"@a_*:example.org\""
            ));
        }
        Ok(Self { prefix: prefix.to_owned(), server })
    }

    pub fn matches(&self, user: &str) -> bool {
        let rest = user.strip_prefix(&self.prefix).and_then(|rest| rest.strip_suffix(&self.server));
        rest.is_some_and(|rest| !rest.is_empty())
    }
}

/// The rules of the labels file, in its order.
#[derive(Clone, Debug, Default)]
pub struct Labels(pub Vec<LabelRule>);

impl Labels {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a label may follow from a room's members.
    pub fn use_members(&self) -> bool {
        self.0.iter().any(|rule| !rule.ghosts.is_empty())
    }

    /// The label of a room: the room's id comes before the inviter, and that before a ghost.
    pub fn of(&self, room: &str, origin: &Origin) -> Option<&str> {
        let find = |wanted: &dyn Fn(&LabelRule) -> bool| {
            self.0.iter().find(|rule| wanted(rule)).map(|rule| rule.name.as_str())
        };
        let same = |listed: &[String], value: Option<&str>| {
            value.is_some_and(|value| listed.iter().any(|one| one == value))
        };
        find(&|rule| same(&rule.rooms, Some(room)))
            .or_else(|| find(&|rule| same(&rule.inviters, origin.inviter.as_deref())))
            .or_else(|| self.of_ghost(origin.ghost.as_deref()?))
    }

    /// The label of the rooms that this user is in, if it is a ghost.
    pub fn of_ghost(&self, user: &str) -> Option<&str> {
        self.0.iter().find(|rule| rule.has_ghost(user)).map(|rule| rule.name.as_str())
    }

    /// The ghost among these users that decides about the label: of the first rule that has one.
    pub fn first_ghost<'a, U: AsRef<str>>(&self, users: &'a [U]) -> Option<&'a str> {
        let users = || users.iter().map(AsRef::as_ref);
        self.0.iter().find_map(|rule| users().find(|user| rule.has_ghost(user)))
    }

    /// What a sync tells of its rooms' origins. `invitations` are the bot's.
    pub fn origins(
        &self,
        rooms: &[RoomChange],
        invitations: &[Invitation],
    ) -> HashMap<String, Origin> {
        let mut origins = HashMap::<String, Origin>::new();
        for room in rooms {
            if let Some(ghost) = self.first_ghost(&room.people) {
                origins.entry(room.room_id.clone()).or_default().ghost = Some(ghost.to_owned());
            }
        }
        for invitation in invitations {
            let origin = origins.entry(invitation.room_id.clone()).or_default();
            origin.inviter = Some(invitation.inviter.clone());
        }
        origins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str) -> LabelRule {
        LabelRule { name: name.to_owned(), ..LabelRule::default() }
    }

    fn ghosts(prefix: &str) -> Vec<Ghosts> {
        vec![Ghosts { prefix: prefix.to_owned(), server: ":x".to_owned() }]
    }

    fn origin(inviter: Option<&str>, ghost: Option<&str>) -> Origin {
        Origin { inviter: inviter.map(Into::into), ghost: ghost.map(Into::into) }
    }

    #[test]
    fn the_room_comes_before_the_inviter_and_that_before_a_ghost() {
        let labels = Labels(vec![
            LabelRule { ghosts: ghosts("@instagram_"), ..rule("instagram") },
            LabelRule { inviters: vec!["@metabot:x".to_owned()], ..rule("messenger") },
            LabelRule { rooms: vec!["!vip:x".to_owned()], ..rule("vip") },
        ]);
        let label = |room: &str, inviter, ghost| {
            labels.of(room, &origin(inviter, ghost)).map(ToOwned::to_owned)
        };
        let ghost = Some("@instagram_7:x");
        assert_eq!(label("!vip:x", Some("@metabot:x"), ghost).as_deref(), Some("vip"));
        assert_eq!(label("!r:x", Some("@metabot:x"), ghost).as_deref(), Some("messenger"));
        assert_eq!(label("!r:x", Some("@alice:x"), ghost).as_deref(), Some("instagram"));
        assert_eq!(label("!r:x", None, None), None);
        // Anybody may register such a name on another server.
        assert_eq!(label("!r:x", None, Some("@instagram_7:evil")), None);
        assert_eq!(labels.first_ghost(&["@alice:x", "@instagram_7:x"]), ghost);
    }

    #[test]
    fn of_several_ghosts_that_of_the_first_rule_counts() {
        let rule = |name: &str| LabelRule { ghosts: ghosts(&format!("@{name}_")), ..rule(name) };
        let labels = Labels(vec![rule("a"), rule("b")]);
        assert_eq!(labels.first_ghost(&["@b_1:x", "@a_1:x", "@a_2:x"]), Some("@a_1:x"));
    }
}
