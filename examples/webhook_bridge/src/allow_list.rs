//! Whose invitations are accepted.

use ruma::UserId;
use wildmatch::WildMatch;

/// User ids and server names, which may contain `*` and `?`.
#[derive(Clone, Debug, Default)]
pub struct AllowList {
    users: Vec<WildMatch>,
    servers: Vec<WildMatch>,
}

impl AllowList {
    /// Read a list whose entries are separated by commas or blanks. An entry that begins with `@` is for
    /// user ids, another one for server names. The error is a malformed entry.
    pub fn parse(list: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        let entries = list.split(|one: char| one == ',' || one.is_whitespace());
        for entry in entries.filter(|entry| !entry.is_empty()) {
            let pattern = WildMatch::new(entry);
            match entry.strip_prefix('@') {
                Some(user) if user == "*" || user.contains(':') => parsed.users.push(pattern),
                None if !entry.contains(['@', '/', '#', '!']) => parsed.servers.push(pattern),
                _ => return Err(entry.to_owned()),
            }
        }
        Ok(parsed)
    }

    /// Whether this user may invite the bot.
    pub fn allows(&self, inviter: &str) -> bool {
        let Ok(user) = UserId::parse(inviter) else { return false };
        let matches =
            |patterns: &[WildMatch], text: &str| patterns.iter().any(|one| one.matches(text));
        matches(&self.users, inviter) || matches(&self.servers, user.server_name().as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_servers_and_patterns_match_as_a_whole() {
        let list = AllowList::parse("@alice:a.org, b.org *.c.org,@meta_*:d.org").unwrap();
        for allowed in ["@alice:a.org", "@any:b.org", "@any:x.c.org", "@meta_1:d.org"] {
            assert!(list.allows(allowed), "{allowed}");
        }
        for refused in
            ["@alice2:a.org", "@alice:a.org.evil", "@any:xb.org", "@any:c.org", "@x:d.org", "b.org"]
        {
            assert!(!list.allows(refused), "{refused}");
        }
        assert!(AllowList::parse("@*").unwrap().allows("@any:where"));
        assert!(!AllowList::parse("b.org").unwrap().allows("@b.org:evil"));
        for malformed in ["@alice", "alice@a.org", "#room:a.org", "https://a.org"] {
            assert_eq!(AllowList::parse(malformed).unwrap_err(), malformed);
        }
    }
}
