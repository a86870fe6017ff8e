//! User-interactive authentication (UIA): what the homeserver requests before it changes
//! cross-signing keys.

use ruma::{
    UserId,
    api::client::uiaa::{AuthData, Dummy, MatrixUserIdentifier, Password, UserIdentifier},
};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::responses::{Fields, RawJson};

/// A response that requests authentication.
#[derive(Debug)]
pub struct InteractiveAuth {
    /// Alternative lists of stages.
    flows: Vec<Vec<String>>,
    session: Option<String>,
    /// A page of the server's account management (MSC4312, `m.oauth`).
    page: Option<String>,
}

/// How to authenticate.
pub enum Answer {
    Password(AuthData),
    /// Without a user.
    Automatic(AuthData),
    /// A user must approve the request on this page; then it is repeated with `auth`.
    Browser {
        page: String,
        auth: AuthData,
    },
}

impl InteractiveAuth {
    pub fn read(fields: &Fields<'_>) -> Option<Self> {
        let flow = |flow: RawJson<'_>| {
            let stages = flow.fields()?.get("stages")?.elements()?;
            Some(stages.into_iter().filter_map(RawJson::read).collect())
        };
        let flows = fields.get("flows")?.elements()?.into_iter().filter_map(flow).collect();
        let params = fields.get("params").and_then(RawJson::fields).unwrap_or_default();
        let page = |stage| {
            let stage = params.get(stage).and_then(RawJson::fields)?;
            stage.get("url").and_then(RawJson::read)
        };
        Some(Self {
            flows,
            session: fields.get("session").and_then(RawJson::read),
            page: page("m.oauth").or_else(|| page("org.matrix.cross_signing_reset")),
        })
    }

    /// The answer that needs the least; `None` if the request offers none that is supported.
    pub fn answer(
        &self,
        user: &UserId,
        password: Option<&SecretString>,
        homeserver: &Url,
    ) -> Option<Answer> {
        if self.offers("m.login.dummy") {
            let mut dummy = Dummy::new();
            dummy.session.clone_from(&self.session);
            return Some(Answer::Automatic(AuthData::Dummy(dummy)));
        }
        if let Some(password) = password
            && self.offers("m.login.password")
        {
            let user = UserIdentifier::Matrix(MatrixUserIdentifier::from(user.to_owned()));
            let mut password = Password::new(user, password.expose_secret().to_owned());
            password.session.clone_from(&self.session);
            return Some(Answer::Password(AuthData::Password(password)));
        }
        let session = self.session.clone()?;
        let page = match &self.page {
            Some(page) => page.clone(),
            None => self.fallback_page(homeserver, &session)?,
        };
        Some(Answer::Browser { page, auth: AuthData::fallback_acknowledgement(session) })
    }

    /// Whether this stage alone is enough.
    fn offers(&self, stage: &str) -> bool {
        self.flows.iter().any(|flow| matches!(flow.as_slice(), [only] if only == stage))
    }

    /// The homeserver's page for the first flow of one stage, such as single sign-on.
    fn fallback_page(&self, homeserver: &Url, session: &str) -> Option<String> {
        let stage = self.flows.iter().find_map(|flow| match flow.as_slice() {
            [only] if only != "m.login.password" => Some(only),
            _ => None,
        })?;
        let mut page = homeserver.clone();
        page.path_segments_mut()
            .ok()?
            .pop_if_empty()
            .extend(["_matrix", "client", "v3", "auth", stage, "fallback", "web"]);
        page.query_pairs_mut().append_pair("session", session);
        Some(page.into())
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    fn answer(body: &str, password: Option<&str>) -> Option<Answer> {
        let fields = RawJson::parse(body).unwrap().fields().unwrap();
        let password = password.map(SecretString::from);
        let homeserver = Url::parse("https://example.org/base/").unwrap();
        InteractiveAuth::read(&fields)?.answer(user_id!("@bot:x"), password.as_ref(), &homeserver)
    }

    #[test]
    fn the_password_is_used_where_it_is_enough() {
        let body = r#"{"flows": [{"stages": ["m.login.password"]}], "session": "s"}"#;
        let Some(Answer::Password(auth)) = answer(body, Some("secret")) else { panic!() };
        assert_eq!(auth.session(), Some("s"));
        assert!(answer(body, None).is_none(), "there is no page for a password");
        let body = r#"{"flows": [{"stages": ["m.login.dummy"]}], "session": "s"}"#;
        assert!(matches!(answer(body, None), Some(Answer::Automatic(_))));
        assert!(answer(r#"{"errcode": "M_FORBIDDEN"}"#, Some("secret")).is_none());
    }

    #[test]
    fn otherwise_a_page_is_named() {
        let page = |body: &str| match answer(body, None) {
            Some(Answer::Browser { page, .. }) => page,
            _ => String::new(),
        };
        let body = r#"{"flows": [{"stages": ["m.login.password"]}, {"stages": ["m.login.sso"]}],
            "session": "a&b"}"#;
        let sso = "https://example.org/base/_matrix/client/v3/auth/m.login.sso/fallback/web";
        assert_eq!(page(body), format!("{sso}?session=a%26b"));
        let body = r#"{"flows": [{"stages": ["m.oauth"]}], "session": "s",
            "params": {"m.oauth": {"url": "https://account.example.org/reset"}}}"#;
        assert_eq!(page(body), "https://account.example.org/reset");
        assert_eq!(page(r#"{"flows": [{"stages": ["a", "b"]}], "session": "s"}"#), "");
    }
}
