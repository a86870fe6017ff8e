//! `.pgpass`: PostgreSQL manual, "The Password File".

use std::path::{Path, PathBuf};

use tracing::warn;
use zeroize::Zeroizing;

use super::Server;

/// `PGPASSFILE`, or `~/.pgpass`.
pub(super) fn default_path() -> Option<PathBuf> {
    match std::env::var_os("PGPASSFILE").filter(|path| !path.is_empty()) {
        Some(path) => Some(path.into()),
        None => Some(std::env::home_dir()?.join(".pgpass")),
    }
}

/// Reads the file; as in libpq, a missing file is ignored, and so is one with group or world access. The
/// reason is logged, and returned for the error of a login that needs a password.
pub(super) fn read(path: &Path) -> Result<Option<Zeroizing<String>>, String> {
    let Ok(metadata) = std::fs::metadata(path) else { return Ok(None) };
    let reason = if !metadata.is_file() {
        "is not used: it is not a plain file".to_owned()
    } else if is_open_to_others(&metadata) {
        "is not used: it has group or world access, its permissions must be 0600".to_owned()
    } else {
        match std::fs::read_to_string(path) {
            Ok(text) => return Ok(Some(text.into())),
            Err(error) => format!("cannot be read: {error}"),
        }
    };
    let reason = format!("the password file {} {reason}", path.display());
    warn!("{reason}");
    Err(reason)
}

#[cfg(unix)]
fn is_open_to_others(metadata: &std::fs::Metadata) -> bool {
    std::os::unix::fs::MetadataExt::mode(metadata) & 0o077 != 0
}

#[cfg(not(unix))]
fn is_open_to_others(_: &std::fs::Metadata) -> bool {
    false
}

/// The password of the first line whose four other fields match.
pub(super) fn look_up(text: &str, server: &Server<'_>) -> Option<Zeroizing<String>> {
    let port = server.port.to_string();
    let wanted = [server.host, &port, server.dbname, server.user];
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line;
        for wanted in wanted {
            let (field, after) = take_field(rest);
            if !(rest.starts_with("*:") || field.as_str() == wanted) {
                return None;
            }
            rest = after?;
        }
        Some(take_field(rest).0)
    })
}

/// Reads up to the next unescaped colon; a backslash escapes the next character.
fn take_field(text: &str) -> (Zeroizing<String>, Option<&str>) {
    let mut field = Zeroizing::new(String::with_capacity(text.len()));
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            ':' => return (field, Some(&text[at + 1..])),
            '\\' => field.push(characters.next().map_or('\\', |(_, escaped)| escaped)),
            other => field.push(other),
        }
    }
    (field, None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn password(text: &str, host: &str) -> Option<String> {
        let server = Server { host, port: 5432, dbname: "bots", user: "ana" };
        look_up(text, &server).map(|password| password.to_string())
    }

    #[test]
    fn the_first_matching_line_counts() {
        let text = "# db:5432:bots:ana:comment\n\
                    db:5433:bots:ana:other port\n\
                    db:5432:*:bob:other user\n\
                    db:*:bots:ana:right\n\
                    *:*:*:*:any";
        assert_eq!(password(text, "db").unwrap(), "right");
        assert_eq!(password(text, "elsewhere").unwrap(), "any");
        assert_eq!(password("db:5432:bots:ana:right\r\n", "db").unwrap(), "right");
    }

    #[test]
    fn backslashes_escape() {
        assert_eq!(password(r"fe80\:\:1:5432:bots:ana:a\:b\\c", "fe80::1").unwrap(), r"a:b\c");
        // Only a lone star is a wildcard.
        assert_eq!(password(r"\*:5432:bots:ana:x", "db"), None);
        assert_eq!(password("d*:5432:bots:ana:x", "db"), None);
    }

    #[test]
    fn incomplete_lines_match_nothing() {
        assert_eq!(password("db:5432:bots:ana", "db"), None);
        assert_eq!(password("\n:::\n", "db"), None);
    }
}
