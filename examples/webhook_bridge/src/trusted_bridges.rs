//! Bridges whose devices may speak for their ghosts: such a bridge encrypts for all of its ghosts with the
//! device of its bot.

use ruma::{OwnedUserId, UserId};

use crate::labels::Ghosts;

/// A bridge's bot, and the ghosts that it encrypts for.
#[derive(Clone, Debug)]
struct TrustedBridge {
    bot: OwnedUserId,
    ghosts: Ghosts,
}

#[derive(Clone, Debug, Default)]
pub struct TrustedBridges(Vec<TrustedBridge>);

impl TrustedBridges {
    /// Read entries such as `@metabot:example.org=@meta_*:example.org`, separated by commas or blanks. The
    /// error says what is wrong with which one.
    pub fn parse(list: &str) -> Result<Self, String> {
        let entries = list.split(|one: char| one == ',' || one.is_whitespace());
        let parsed = entries.filter(|entry| !entry.is_empty()).map(|entry| {
            parse(entry).map_err(|reason| format!("has the entry {entry:?}: {reason}"))
        });
        parsed.collect::<Result<_, _>>().map(Self)
    }

    /// The bots whose devices may speak for this user.
    pub fn bots_of(&self, user: &UserId) -> Vec<&UserId> {
        let speaks = |one: &&TrustedBridge| {
            user.server_name() == one.bot.server_name() && one.ghosts.matches(user.as_str())
        };
        self.0.iter().filter(speaks).map(|one| one.bot.as_ref()).collect()
    }
}

fn parse(entry: &str) -> Result<TrustedBridge, String> {
    // The `=` of a user id's localpart, which is rare, may be the bot's or the ghosts'.
    let mut cuts = entry.match_indices("=@");
    let (Some((cut, _)), None) = (cuts.next(), cuts.next()) else {
        return Err("it is not a bridge's bot, '=' and the pattern of its ghosts".to_owned());
    };
    let (bot, pattern) = (&entry[..cut], &entry[cut + 1..]);
    let bot = UserId::parse(bot).map_err(|error| format!("{bot:?} is not a user id: {error}"))?;
    if !pattern.contains('*') {
        return Err(format!("{pattern:?} has no '*', as in \"@meta_*:{}\"", bot.server_name()));
    }
    let ghosts = Ghosts::parse(pattern, bot.server_name())?;
    if ghosts.server != format!(":{}", bot.server_name()) {
        return Err("the ghosts of a bridge are on the server of its bot".to_owned());
    }
    Ok(TrustedBridge { bot, ghosts })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bots(bridges: &TrustedBridges, user: &str) -> Vec<String> {
        let user = UserId::parse(user).unwrap();
        bridges.bots_of(&user).into_iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_bot_speaks_for_its_ghosts_only() {
        let bridges = TrustedBridges::parse(
            "@metabot:a.org=@meta_*:a.org, @igbot:b.org:8448=@ig=_*:b.org:8448 @two:a.org=@meta_1*:a.org",
        )
        .unwrap();
        assert_eq!(bots(&bridges, "@meta_7:a.org"), ["@metabot:a.org"]);
        assert_eq!(bots(&bridges, "@meta_12:a.org"), ["@metabot:a.org", "@two:a.org"]);
        assert_eq!(bots(&bridges, "@ig=_7:b.org:8448"), ["@igbot:b.org:8448"]);
        for other in [
            "@meta_:a.org",
            "@meta:a.org",
            "@xmeta_7:a.org",
            "@META_7:a.org",
            "@meta_7:a.org.evil",
            "@meta_7:evil",
            "@meta_7:a.org:8448",
            "@meta_7:b.org:8448",
            "@ig=_7:b.org",
            "@metabot:a.org",
        ] {
            assert_eq!(bots(&bridges, other), [""; 0], "{other}");
        }
        assert_eq!(bots(&TrustedBridges::default(), "@meta_7:a.org"), [""; 0]);
        assert_eq!(bots(&TrustedBridges::parse(" , ").unwrap(), "@meta_7:a.org"), [""; 0]);
    }

    #[test]
    fn wide_foreign_and_malformed_patterns_are_refused() {
        for (entry, expected) in [
            ("@metabot:a.org=@*:a.org", "beginning of a user id"),
            ("@metabot:a.org=@*", "beginning of a user id"),
            ("@metabot:a.org=@", "has no '*'"),
            ("@metabot:a.org=@meta_", "has no '*'"),
            ("@metabot:a.org=@meta_7:a.org", "has no '*'"),
            ("@metabot:a.org=@meta_*:b.org", "on the server of its bot"),
            ("@metabot:a.org=@meta_*:*", "server after its '*'"),
            ("@metabot:a.org=@meta_*:*.org", "server after its '*'"),
            ("@metabot:a.org=@meta_*7:a.org", "server after its '*'"),
            ("@metabot:a.org=@meta_*", "server after its '*'"),
            ("@*:a.org=@meta_*:b.org", "on the server of its bot"),
            ("@metabot:*=@meta_*:*", "is not a user id"),
            ("@metabot=@meta_*:a.org", "is not a user id"),
            ("@metabot:a.org", "'=' and the pattern"),
            ("@metabot:a.org=*", "'=' and the pattern"),
            ("@metabot:a.org=", "'=' and the pattern"),
            ("*", "'=' and the pattern"),
            ("@metabot:a.org=@meta_*:a.org=@ig_*:a.org", "'=' and the pattern"),
        ] {
            let error = TrustedBridges::parse(entry).unwrap_err();
            assert!(error.contains(expected) && error.contains(entry), "{error}");
        }
    }
}
