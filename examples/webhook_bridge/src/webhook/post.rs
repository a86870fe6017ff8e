//! POSTs a message to the webhook, and interprets the response.

use std::time::{Duration, SystemTime};

use http::{HeaderValue, StatusCode, header};
use secrecy::{ExposeSecret, SecretString};

use super::{
    signature::{SIGNATURE, TIMESTAMP, sign},
    template::Template,
};
use crate::{
    config::WebhookConfig,
    errors::{BridgeError, exit_code},
    homeserver::causes,
    http_client,
    message::Message,
    retry,
};

/// Responses are read up to this size, so that the connection can be reused; the body is ignored.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// The outcome of a POST.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Delivered,
    /// The template prints nothing for this message, so it is left out.
    LeftOut,
    /// The webhook rejects this message; others may succeed.
    Rejected(String),
    /// The webhook is unreachable, failing or misconfigured.
    Unavailable {
        reason: String,
        retry_after: Option<Duration>,
        /// All rooms must pause: the webhook limits the rate.
        for_all: bool,
    },
}

pub struct Webhook {
    /// The label it belongs to; empty for the default one.
    pub name: String,
    http: reqwest::Client,
    url: url::Url,
    authorization: Option<HeaderValue>,
    secret: Option<SecretString>,
    timeout: Duration,
    template: Option<Template>,
}

impl Webhook {
    pub fn new(
        http: reqwest::Client,
        config: &WebhookConfig,
        name: &str,
    ) -> Result<Self, BridgeError> {
        let mut authorization = config.target.authorization.clone();
        if let Some(token) = &config.token {
            let value = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()));
            let mut value = value.map_err(|_| {
                let setting = if name.is_empty() { "WEBHOOK_TOKEN" } else { "webhook_token" };
                BridgeError::fatal(
                    exit_code::CONFIGURATION,
                    format!(
                        "{setting} contains characters that are not allowed in an HTTP header: set \
                         it to a token without them"
                    ),
                )
            })?;
            value.set_sensitive(true);
            authorization = Some(value);
        }
        Ok(Self {
            name: name.to_owned(),
            http,
            url: config.target.url.clone(),
            authorization,
            secret: config.secret.clone(),
            timeout: config.timeout,
            template: config.template.clone(),
        })
    }

    /// For logs: the rest of the URL may hold a secret.
    pub fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }

    pub async fn post(&self, message: &Message) -> Outcome {
        let Ok(key) = HeaderValue::from_str(&message.event_id) else {
            return Outcome::Rejected("the message cannot be sent as an HTTP request".to_owned());
        };
        let body = match self.document(message) {
            Ok(Some(body)) => body,
            Ok(None) => return Outcome::LeftOut,
            Err(reason) => return Outcome::Rejected(reason),
        };
        let mut request = self
            .http
            .post(self.url.clone())
            .timeout(self.timeout)
            .header(header::CONTENT_TYPE, "application/json")
            .header("Idempotency-Key", key);
        if let Some((timestamp, signature)) = self.signature(&body) {
            request = request.header(TIMESTAMP, timestamp).header(SIGNATURE, signature);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        match request.body(body).send().await {
            Ok(response) => {
                let outcome =
                    classify(response.status(), retry::retry_after_header(response.headers()));
                let _ = http_client::body(response, MAX_RESPONSE_BYTES).await;
                outcome
            }
            Err(error) => {
                Outcome::Unavailable { reason: causes(error), retry_after: None, for_all: false }
            }
        }
    }
}

impl Webhook {
    /// The body of the request.
    fn document(&self, message: &Message) -> Result<Option<Vec<u8>>, String> {
        match &self.template {
            Some(template) => Ok(template.render(message)?.map(String::into_bytes)),
            None => serde_json::to_vec(message).map(Some).map_err(|error| error.to_string()),
        }
    }

    /// The values of the headers that sign a body now, if there is a secret.
    fn signature(&self, body: &[u8]) -> Option<(String, String)> {
        let secret = self.secret.as_ref()?.expose_secret();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
        let timestamp = now.to_string();
        let signature = sign(secret, &timestamp, body)?;
        Some((timestamp, signature))
    }
}

fn classify(status: StatusCode, retry_after: Option<Duration>) -> Outcome {
    let for_all = status == StatusCode::TOO_MANY_REQUESTS;
    let unavailable = |advice: &str| Outcome::Unavailable {
        reason: format!("{status}{advice}"),
        retry_after,
        for_all,
    };
    match status.as_u16() {
        200..300 => Outcome::Delivered,
        300..400 => {
            unavailable(": redirects are not followed, set the webhook's URL to the final one")
        }
        // A wrong setting must not lose messages: they are retried until it is fixed.
        401 | 403 => unavailable(": check the webhook's token"),
        404 | 405 | 410 => unavailable(": check the webhook's URL"),
        408 | 425 | 429 => unavailable(""),
        400..500 => Outcome::Rejected(status.to_string()),
        _ => unavailable(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_rejection_of_the_message_itself_counts_against_it() {
        let classified = |status| classify(StatusCode::from_u16(status).unwrap(), None);
        assert_eq!(classified(204), Outcome::Delivered);
        for status in [302, 401, 403, 404, 408, 429, 500, 503, 599] {
            assert!(matches!(classified(status), Outcome::Unavailable { .. }), "{status}");
        }
        for status in [400, 413, 422] {
            assert!(matches!(classified(status), Outcome::Rejected(_)), "{status}");
        }
    }
}
