//! One POST to the webhook, and what its answer means.

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

/// A webhook that needs longer should queue.
const TIMEOUT: Duration = Duration::from_secs(30);

/// So much of an answer is read, for the sake of the connection; it means nothing to us.
const ANSWER_LIMIT: usize = 64 * 1024;

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Delivered,
    /// This message is refused; others may not be.
    Rejected(String),
    /// It does not get through.
    Unavailable {
        reason: String,
        wish: Option<Duration>,
        /// Not only this room's: it was asked too often.
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
                BridgeError::last(
                    exit_code::CONFIGURATION,
                    "WEBHOOK_TOKEN has characters that no header can carry",
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

    pub async fn post(&self, message: &Message) -> Answer {
        let (Ok(key), Ok(body)) =
            (HeaderValue::from_str(&message.event_id), serde_json::to_vec(message))
        else {
            return Answer::Rejected("the message cannot be put into a request".to_owned());
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
                let answer = meaning(response.status(), retry::wish_of(response.headers()));
                let mut read = 0;
                while let Ok(Some(chunk)) = response.chunk().await {
                    read += chunk.len();
                    if read > ANSWER_LIMIT {
                        break;
                    }
                }
                answer
            }
            Err(error) => Answer::Unavailable { reason: causes(error), wish: None, for_all: false },
        }
    }
}

fn meaning(status: StatusCode, wish: Option<Duration>) -> Answer {
    let for_all = status == StatusCode::TOO_MANY_REQUESTS;
    let unavailable =
        |advice: &str| Answer::Unavailable { reason: format!("{status}{advice}"), wish, for_all };
    match status.as_u16() {
        200..300 => Answer::Delivered,
        300..400 => unavailable(": it redirects; set WEBHOOK_URL to the final address"),
        // A wrong setting must not cost messages: they wait until it is put right.
        401 | 403 => unavailable(": check WEBHOOK_TOKEN"),
        404 | 405 | 410 => unavailable(": check WEBHOOK_URL"),
        408 | 425 | 429 => unavailable(""),
        400..500 => Answer::Rejected(status.to_string()),
        _ => unavailable(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_of_this_message_counts_against_it() {
        let means = |status| meaning(StatusCode::from_u16(status).unwrap(), None);
        assert_eq!(means(204), Answer::Delivered);
        for status in [302, 401, 403, 404, 408, 429, 500, 503, 599] {
            assert!(matches!(means(status), Answer::Unavailable { .. }), "{status}");
        }
        for status in [400, 413, 422] {
            assert!(matches!(means(status), Answer::Rejected(_)), "{status}");
        }
    }
}
