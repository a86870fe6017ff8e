//! POSTs a message to the webhook, and interprets the response.

use std::time::Duration;

use http::{HeaderValue, StatusCode, header};
use secrecy::ExposeSecret;

use crate::{
    config::Config,
    errors::{BridgeError, exit_code},
    homeserver::causes,
    message::Message,
    retry,
};

/// A slower webhook should queue its work.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Responses are read up to this size, so that the connection can be reused; the body is ignored.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// The outcome of a POST.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Delivered,
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

#[derive(Clone)]
pub struct Webhook {
    http: reqwest::Client,
    url: url::Url,
    authorization: Option<HeaderValue>,
}

impl Webhook {
    pub fn new(http: reqwest::Client, config: &Config) -> Result<Self, BridgeError> {
        let mut authorization = config.webhook_url.authorization.clone();
        if let Some(token) = &config.webhook_token {
            let value = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()));
            let mut value = value.map_err(|_| {
                BridgeError::fatal(
                    exit_code::CONFIGURATION,
                    "WEBHOOK_TOKEN contains characters that are not allowed in an HTTP header: set \
                     it to a token without them",
                )
            })?;
            value.set_sensitive(true);
            authorization = Some(value);
        }
        Ok(Self { http, url: config.webhook_url.url.clone(), authorization })
    }

    /// For logs: the rest of the URL may hold a secret.
    pub fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }

    pub async fn post(&self, message: &Message) -> Outcome {
        let (Ok(key), Ok(body)) =
            (HeaderValue::from_str(&message.event_id), serde_json::to_vec(message))
        else {
            return Outcome::Rejected("the message cannot be sent as an HTTP request".to_owned());
        };
        let mut request = self
            .http
            .post(self.url.clone())
            .timeout(TIMEOUT)
            .header(header::CONTENT_TYPE, "application/json")
            .header("Idempotency-Key", key)
            .body(body);
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        match request.send().await {
            Ok(mut response) => {
                let outcome =
                    classify(response.status(), retry::retry_after_header(response.headers()));
                let mut read = 0;
                while let Ok(Some(chunk)) = response.chunk().await {
                    read += chunk.len();
                    if read > MAX_RESPONSE_BYTES {
                        break;
                    }
                }
                outcome
            }
            Err(error) => {
                Outcome::Unavailable { reason: causes(error), retry_after: None, for_all: false }
            }
        }
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
        300..400 => unavailable(": redirects are not followed, set WEBHOOK_URL to the final URL"),
        // A wrong setting must not lose messages: they are retried until it is fixed.
        401 | 403 => unavailable(": check WEBHOOK_TOKEN"),
        404 | 405 | 410 => unavailable(": check WEBHOOK_URL"),
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
