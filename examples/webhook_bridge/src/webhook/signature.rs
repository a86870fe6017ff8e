//! Signs deliveries, so that a receiver can tell that they come from the bridge and when.

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Seconds since 1970, part of what is signed: a receiver can refuse old requests.
pub const TIMESTAMP: &str = "X-Webhook-Bridge-Timestamp";
/// `sha256=` and the hexadecimal HMAC-SHA256 of the timestamp, a full stop and the body.
pub const SIGNATURE: &str = "X-Webhook-Bridge-Signature-256";

pub fn sign(secret: &str, timestamp: &str, body: &[u8]) -> Option<String> {
    let mut hmac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).ok()?;
    hmac.update(timestamp.as_bytes());
    hmac.update(b".");
    hmac.update(body);
    Some(format!("sha256={:x}", hmac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// printf '1767225600.{"body":"hello"}' | openssl dgst -sha256 -hmac 'a secret'
    #[test]
    fn the_signature_is_that_of_openssl() {
        let signature = sign("a secret", "1767225600", br#"{"body":"hello"}"#).unwrap();
        assert_eq!(
            signature,
            "sha256=75933ae72dca1cbc28161c981ffdba4ca7d94108a8d9c842409bd4645c84f04b"
        );
    }
}
