//! Why a request to the homeserver did not succeed, and what that means.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use crate::{answers::Piece, retry};

#[derive(Debug, thiserror::Error)]
pub enum HomeserverError {
    #[error("the homeserver cannot be reached: {0}: check MATRIX_HOMESERVER and the network")]
    Unreachable(String),
    #[error("the homeserver answered {0}")]
    Refused(Refusal),
    #[error("the homeserver's answer cannot be read: {0}")]
    Unreadable(String),
    /// A homeserver has answered, and what is needed is not in it.
    #[error("the homeserver's answer is malformed: {0}")]
    Malformed(&'static str),
    /// What every homeserver tells was refused, so it may be a wrong address that was asked.
    #[error("no homeserver answers there ({0}): check MATRIX_HOMESERVER, which is its base URL")]
    NotThere(String),
    #[error("stopped")]
    Stopped,
}

/// A no of the homeserver, or of what stands before it.
#[derive(Debug, thiserror::Error)]
#[error("{status}{}", shown(.code, .text))]
pub struct Refusal {
    pub status: StatusCode,
    /// The `errcode`; `None` if something else than a homeserver has answered.
    pub code: Option<String>,
    pub text: String,
    soft_logout: bool,
    wish: Option<Duration>,
}

fn shown(code: &Option<String>, text: &str) -> String {
    let Some(code) = code else {
        return " without an error of Matrix: it may not be a homeserver that answers, check \
                MATRIX_HOMESERVER"
            .to_owned();
    };
    // The text is somebody else's, and may be long.
    let text: String = text.chars().filter(|one| !one.is_control()).take(200).collect();
    format!(" {code}: {text}")
}

/// What a refused access token may mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionLoss {
    /// It has expired; the device is still there.
    Expired,
    /// It is not known: the device was deleted, or the account is locked for a while, which some
    /// servers say in the same words.
    Unknown,
    /// The account is locked.
    Locked,
}

impl Refusal {
    pub fn read(status: StatusCode, headers: &HeaderMap, body: &str) -> Self {
        let fields = Piece::parse(body).and_then(Piece::fields).unwrap_or_default();
        let text = |name: &str| fields.get(name).and_then(Piece::read::<String>);
        let millis = fields.get("retry_after_ms").and_then(|wish| {
            wish.read::<f64>().or_else(|| wish.read::<String>()?.trim().parse().ok())
        });
        let wish = millis.and_then(|millis| Duration::try_from_secs_f64(millis / 1000.0).ok());
        Self {
            status,
            code: text("errcode"),
            text: text("error").unwrap_or_default(),
            soft_logout: fields.get("soft_logout").and_then(Piece::read).unwrap_or(false),
            wish: retry::wish_of(headers).or(wish).map(|wish| wish.min(retry::LONGEST_WISH)),
        }
    }
}

impl HomeserverError {
    /// Whether the same request may succeed later. What is no error of Matrix comes from a proxy, a
    /// firewall or a wrong address, and says nothing about the request.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Unreadable(_) | Self::Malformed(_) | Self::NotThere(_) => {
                true
            }
            Self::Refused(refusal) => {
                let status = refusal.status;
                refusal.code.is_none()
                    || self.code() == "M_LIMIT_EXCEEDED"
                    || !status.is_client_error()
                    || matches!(status.as_u16(), 408 | 425 | 429)
            }
            Self::Stopped => false,
        }
    }

    /// Whether it says nothing about what was asked for: it is temporary, or about who asks.
    pub fn is_beside_the_point(&self) -> bool {
        let about_it = matches!(self, Self::Malformed(_));
        self.is_temporary() && !about_it || self.status() == Some(401)
    }

    /// For a token that is not accepted: what it may mean.
    pub fn session_loss(&self) -> Option<SessionLoss> {
        match self {
            Self::Refused(refusal) if refusal.status == StatusCode::UNAUTHORIZED => {
                match self.code() {
                    "M_USER_LOCKED" => Some(SessionLoss::Locked),
                    "M_UNKNOWN_TOKEN" if refusal.soft_logout => Some(SessionLoss::Expired),
                    "M_UNKNOWN_TOKEN" => Some(SessionLoss::Unknown),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// Whether the run has to end: nothing will be answered any more.
    pub fn ends_run(&self) -> bool {
        self.session_loss().is_some() || matches!(self, Self::Stopped)
    }

    /// For a sync: whether it is asked in vain with this position.
    pub fn refuses_position(&self) -> bool {
        let refused = self.status().is_some_and(|status| (400..500).contains(&status));
        self.code() == "M_UNKNOWN_POS" || refused && !self.is_beside_the_point()
    }

    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused(refusal) => Some(refusal.status.as_u16()),
            _ => None,
        }
    }

    /// The `errcode`, or nothing.
    pub fn code(&self) -> &str {
        match self {
            Self::Refused(refusal) => refusal.code.as_deref().unwrap_or_default(),
            _ => "",
        }
    }

    /// When the server wants to be asked again.
    pub fn wish(&self) -> Option<Duration> {
        match self {
            Self::Refused(refusal) => refusal.wish,
            _ => None,
        }
    }
}

/// How long things have failed, whatever the reason. What comes to nothing while the homeserver works
/// will come to nothing later.
#[derive(Default)]
pub struct Failing(Mutex<HashMap<String, Instant>>);

impl Failing {
    fn since(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It failed: for how long it has. While the homeserver does not work, that says nothing.
    pub fn again(&self, what: &str, homeserver_works: bool) -> Duration {
        let mut since = self.since();
        if !homeserver_works {
            since.remove(what);
            return Duration::ZERO;
        }
        since.entry(what.to_owned()).or_insert_with(Instant::now).elapsed()
    }

    pub fn has(&self, what: &str) -> bool {
        self.since().contains_key(what)
    }

    pub fn ended(&self, what: &str) {
        self.since().remove(what);
    }
}

/// How often something was refused. A no may pass, for federation and a homeserver's workers lag
/// behind, but what waits for it must not wait for ever.
#[derive(Default)]
pub struct Refusals(Mutex<HashMap<String, u32>>);

impl Refusals {
    /// So often something is asked for, with growing pauses: for about half a minute.
    const MOST: u32 = 5;

    fn counts(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It was refused: whether to ask again.
    pub fn again(&self, what: &str) -> bool {
        let mut counts = self.counts();
        let count = counts.entry(what.to_owned()).or_default();
        *count += 1;
        let again = *count < Self::MOST;
        if !again {
            counts.remove(what);
        }
        again
    }

    pub fn granted(&self, what: &str) {
        self.counts().remove(what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, body: &str) -> HomeserverError {
        let status = StatusCode::from_u16(status).unwrap();
        HomeserverError::Refused(Refusal::read(status, &HeaderMap::new(), body))
    }

    #[test]
    fn only_a_homeserver_says_no_for_good() {
        let no = r#"{"errcode": "M_FORBIDDEN"}"#;
        for (status, body) in
            [(403, no), (400, no), (404, no), (401, no), (400, r#"{"errcode": ""}"#)]
        {
            assert!(!refusal(status, body).is_temporary(), "{status}");
        }
        for (status, body) in [
            (403, "<html>blocked</html>"),
            (404, "{}"),
            (301, ""),
            (429, no),
            (500, no),
            (400, r#"{"errcode": 7}"#),
            (400, r#"{"error": "no"}"#),
            (400, r#"{"errcode": "M_LIMIT_EXCEEDED"}"#),
        ] {
            assert!(refusal(status, body).is_temporary(), "{status} {body}");
        }
        assert!(refusal(302, "").to_string().contains("MATRIX_HOMESERVER"));
    }

    #[test]
    fn a_wish_is_taken_in_any_form_and_a_refused_token_has_three_meanings() {
        let wish = |value: &str| {
            refusal(429, &format!(r#"{{"errcode": "M", "retry_after_ms": {value}}}"#)).wish()
        };
        assert_eq!(wish("1500"), Some(Duration::from_millis(1500)));
        assert_eq!(wish("1500.0"), wish("\"1500\""));
        assert_eq!((wish("-1"), wish("null")), (None, None));
        assert_eq!(wish("1e15"), wish("900000"), "nobody is waited for so long");
        let loss = |body: &str| refusal(401, body).session_loss();
        assert_eq!(loss(r#"{"errcode": "M_UNKNOWN_TOKEN"}"#), Some(SessionLoss::Unknown));
        assert_eq!(
            loss(r#"{"errcode": "M_UNKNOWN_TOKEN", "soft_logout": true}"#),
            Some(SessionLoss::Expired)
        );
        assert_eq!(
            loss(r#"{"errcode": "M_USER_LOCKED", "soft_logout": true}"#),
            Some(SessionLoss::Locked)
        );
        assert_eq!(loss(r#"{"errcode": "M_FORBIDDEN"}"#), None);
        assert_eq!(refusal(403, r#"{"errcode": "M_UNKNOWN_TOKEN"}"#).session_loss(), None);
    }

    #[test]
    fn what_fails_while_the_homeserver_does_not_work_has_not_begun_to_fail() {
        let failing = Failing::default();
        let pause = || std::thread::sleep(Duration::from_millis(1));
        assert!(failing.again("a", true) < failing.again("b", true) + Duration::from_secs(60));
        pause();
        assert!(failing.again("a", true) > Duration::ZERO);
        assert_eq!(failing.again("a", false), Duration::ZERO);
        let anew = failing.again("a", true);
        pause();
        assert!(anew < failing.again("b", true));
        failing.ended("b");
        pause();
        assert!(failing.again("b", true) < failing.again("a", true));
    }
}
