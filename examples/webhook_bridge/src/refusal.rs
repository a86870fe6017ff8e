//! Errors of requests to the homeserver, and their classification.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use crate::{interactive_auth::InteractiveAuth, responses::RawJson, retry, untrusted::shortened};

#[derive(Debug, thiserror::Error)]
pub enum HomeserverError {
    #[error("the homeserver cannot be reached: {0}: check MATRIX_HOMESERVER and the network")]
    Unreachable(String),
    #[error("the homeserver responded with {0}")]
    Refused(Refusal),
    #[error("the homeserver's response cannot be read: {0}")]
    Unreadable(String),
    /// JSON without a required field.
    #[error("the homeserver's response is malformed: {0}")]
    Malformed(&'static str),
    /// `/versions` failed, which every homeserver supports: the base URL may be wrong.
    #[error("there is no homeserver at this URL ({0}): check MATRIX_HOMESERVER, the base URL")]
    NoHomeserver(String),
    #[error("stopped")]
    Stopped,
}

/// An error response of the homeserver, or of a proxy before it.
#[derive(Debug, thiserror::Error)]
#[error("{status}{}", describe(.code, .text))]
pub struct Refusal {
    pub status: StatusCode,
    /// The `errcode`; `None` if the response does not come from a homeserver.
    pub code: Option<String>,
    pub text: String,
    soft_logout: bool,
    retry_after: Option<Duration>,
    interactive_auth: Option<Box<InteractiveAuth>>,
}

fn describe(code: &Option<String>, text: &str) -> String {
    let Some(code) = code else {
        return " without a Matrix errcode: the response may not come from a homeserver, check \
                MATRIX_HOMESERVER"
            .to_owned();
    };
    // Both may be those of a remote server.
    format!(" {}: {}", shortened(code), shortened(text))
}

/// Possible reasons for a refused access token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionLoss {
    /// It has expired (soft logout); the device still exists.
    Expired,
    /// It is unknown: the device was deleted, or the account is locked (some servers use the same
    /// errcode).
    Unknown,
    /// The account is locked.
    Locked,
}

impl Refusal {
    pub fn read(status: StatusCode, headers: &HeaderMap, body: &str) -> Self {
        let fields = RawJson::parse(body).and_then(RawJson::fields).unwrap_or_default();
        let text = |name: &str| fields.get(name).and_then(RawJson::read::<String>);
        let millis = fields.get("retry_after_ms").and_then(|retry_after| {
            retry_after.read::<f64>().or_else(|| retry_after.read::<String>()?.trim().parse().ok())
        });
        let retry_after =
            millis.and_then(|millis| Duration::try_from_secs_f64(millis / 1000.0).ok());
        Self {
            status,
            code: text("errcode"),
            text: text("error").unwrap_or_default(),
            soft_logout: fields.get("soft_logout").and_then(RawJson::read).unwrap_or(false),
            retry_after: retry::retry_after_header(headers)
                .or(retry_after)
                .map(|retry_after| retry_after.min(retry::MAX_RETRY_AFTER)),
            interactive_auth: InteractiveAuth::read(&fields)
                .filter(|_| status == StatusCode::UNAUTHORIZED)
                .map(Box::new),
        }
    }
}

impl HomeserverError {
    /// Whether the same request may succeed later. A response without an errcode comes from a proxy, a
    /// firewall or a wrong address, so it is not conclusive.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable(_)
            | Self::Unreadable(_)
            | Self::Malformed(_)
            | Self::NoHomeserver(_) => true,
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

    /// Whether the error is unrelated to the requested object: temporary, or about the access token.
    pub fn is_unrelated(&self) -> bool {
        let about_object = matches!(self, Self::Malformed(_));
        self.is_temporary() && !about_object || self.status() == Some(401)
    }

    /// The possible reason, if the access token was refused.
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

    /// The authentication that the homeserver requests before it performs the request, if any.
    pub fn interactive_auth(&self) -> Option<&InteractiveAuth> {
        match self {
            Self::Refused(refusal) => refusal.interactive_auth.as_deref(),
            _ => None,
        }
    }

    /// Whether the run has to end, because every later request will fail, too.
    pub fn ends_run(&self) -> bool {
        self.session_loss().is_some() || matches!(self, Self::Stopped)
    }

    /// Whether the response to a sync means that the homeserver rejects the position.
    pub fn refuses_position(&self) -> bool {
        let refused = self.status().is_some_and(|status| (400..500).contains(&status));
        self.code() == "M_UNKNOWN_POS" || refused && !self.is_unrelated()
    }

    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused(refusal) => Some(refusal.status.as_u16()),
            _ => None,
        }
    }

    /// The `errcode`; empty if there is none.
    pub fn code(&self) -> &str {
        match self {
            Self::Refused(refusal) => refusal.code.as_deref().unwrap_or_default(),
            _ => "",
        }
    }

    /// The delay that the server requests before a retry.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refusal) => refusal.retry_after,
            _ => None,
        }
    }
}

/// How long each operation has been failing, for any reason, while the homeserver otherwise works:
/// after a time limit the failure counts as permanent.
#[derive(Default)]
pub struct FailureTimers(Mutex<HashMap<String, Instant>>);

impl FailureTimers {
    fn since(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Record a failure. Returns how long the operation has been failing; an outage of the homeserver
    /// resets that.
    pub fn record_failure(&self, what: &str, homeserver_works: bool) -> Duration {
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

    pub fn reset(&self, what: &str) {
        self.since().remove(what);
    }
}

/// How often each operation was refused. A refusal may be temporary, because federation and a
/// homeserver's workers lag, but the number of retries is limited.
#[derive(Default)]
pub struct Refusals(Mutex<HashMap<String, u32>>);

impl Refusals {
    /// With backoff, about half a minute.
    const MAX_REFUSALS: u32 = 5;

    fn counts(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Record a refusal. Returns whether to retry.
    pub fn record_refusal(&self, what: &str) -> bool {
        let mut counts = self.counts();
        let count = counts.entry(what.to_owned()).or_default();
        *count += 1;
        let again = *count < Self::MAX_REFUSALS;
        if !again {
            counts.remove(what);
        }
        again
    }

    pub fn reset(&self, what: &str) {
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
    fn only_errors_of_a_homeserver_are_permanent() {
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
    fn a_remote_servers_errcode_and_text_cannot_forge_log_lines() {
        let hostile = format!(r"no\n\u001b[2J{}", "x".repeat(10_000));
        let body = format!(r#"{{"errcode": "{hostile}", "error": "{hostile}"}}"#);
        let shown = refusal(403, &body).to_string();
        assert!(shown.contains("no[2Jxxx") && !shown.contains(char::is_control), "{shown}");
        assert!(shown.len() < 1000, "{}", shown.len());
    }

    #[test]
    fn retry_after_is_read_in_any_form_and_a_refused_token_is_classified() {
        let retry_after = |value: &str| {
            refusal(429, &format!(r#"{{"errcode": "M", "retry_after_ms": {value}}}"#)).retry_after()
        };
        assert_eq!(retry_after("1500"), Some(Duration::from_millis(1500)));
        assert_eq!(retry_after("1500.0"), retry_after("\"1500\""));
        assert_eq!((retry_after("-1"), retry_after("null")), (None, None));
        assert_eq!(retry_after("1e15"), retry_after("900000"), "limited to MAX_RETRY_AFTER");
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
    fn an_outage_resets_the_failure_timer() {
        let failures = FailureTimers::default();
        let pause = || std::thread::sleep(Duration::from_millis(1));
        assert!(
            failures.record_failure("a", true)
                < failures.record_failure("b", true) + Duration::from_secs(60)
        );
        pause();
        assert!(failures.record_failure("a", true) > Duration::ZERO);
        assert_eq!(failures.record_failure("a", false), Duration::ZERO);
        let restarted = failures.record_failure("a", true);
        pause();
        assert!(restarted < failures.record_failure("b", true));
        failures.reset("b");
        pause();
        assert!(failures.record_failure("b", true) < failures.record_failure("a", true));
    }
}
