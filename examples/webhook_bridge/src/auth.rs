//! Bearer tokens that requests to the bridge must carry.

use http::{HeaderMap, header::AUTHORIZATION};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// An expected token. Only its digest is kept, so that a comparison takes the same time for tokens of any
/// length.
#[derive(Clone)]
pub struct BearerToken([u8; 32]);

impl BearerToken {
    pub fn new(token: &SecretString) -> Self {
        Self(digest(token.expose_secret()))
    }

    pub fn permits(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        given.is_some_and(|token| digest(token).ct_eq(&self.0).into())
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_is_permitted() {
        let token = BearerToken::new(&"s3cret".into());
        let permits = |value: &str| {
            token.permits(&HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]))
        };
        assert!(permits("Bearer s3cret") && permits("bearer  s3cret"));
        for wrong in ["Bearer s3cre", "Bearer s3cret1", "Bearer ", "s3cret", "Basic s3cret", ""] {
            assert!(!permits(wrong), "{wrong}");
        }
        assert!(!token.permits(&HeaderMap::new()));
    }
}
