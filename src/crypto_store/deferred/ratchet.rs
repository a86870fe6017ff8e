//! The state of a session's sending ratchet, read from its pickle.

use matrix_sdk_crypto::olm::PickledSession;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Identifies the state of a sending ratchet: each encryption changes it.
pub(crate) type Fingerprint = [u8; 32];

/// The state of a session's sending ratchet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SendingRatchet {
    /// Nothing was encrypted since the last message was received, or ever.
    Unused,
    /// A message was encrypted since then.
    Used(Fingerprint),
    /// The pickle has an unknown form.
    Unknown,
}

#[derive(Deserialize)]
struct Pickle<'a> {
    #[serde(borrow)]
    sending_ratchet: &'a RawValue,
    receiving_chains: Chains,
}

#[derive(Deserialize)]
struct Chains {
    inner: Vec<IgnoredAny>,
}

#[derive(Deserialize)]
struct Ratchet {
    ratchet_count: Option<IgnoredAny>,
    active_ratchet: Option<IgnoredAny>,
    symmetric_key_ratchet: Option<Chain>,
}

#[derive(Deserialize)]
struct Chain {
    index: u64,
}

impl SendingRatchet {
    pub(crate) fn of(session: &PickledSession) -> Self {
        match serde_json::to_vec(&session.pickle).map(Zeroizing::new) {
            Ok(pickle) => Self::parse(&pickle),
            Err(_) => Self::Unknown,
        }
    }

    fn parse(pickle: &[u8]) -> Self {
        let Ok(pickle) = serde_json::from_slice::<Pickle<'_>>(pickle) else { return Self::Unknown };
        let ratchet = pickle.sending_ratchet.get();
        match serde_json::from_str(ratchet) {
            Ok(Ratchet { ratchet_count: Some(_), active_ratchet: None, .. }) => Self::Unused,
            // A failed attempt to decrypt another session's message has begun the chain. A session that
            // we created has its first chain begun too; the other side waits for its first message.
            Ok(Ratchet {
                ratchet_count: Some(_),
                active_ratchet: Some(_),
                symmetric_key_ratchet: Some(Chain { index: 0 }),
            }) if !pickle.receiving_chains.inner.is_empty() => Self::Unused,
            Ok(Ratchet { ratchet_count: Some(_), active_ratchet: Some(_), .. }) => {
                Self::Used(Sha256::digest(ratchet).into())
            }
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::SendingRatchet;

    const COUNT: &str = r#""ratchet_count":{"Known":1}"#;

    fn sending(ratchet: &str, chains: &str) -> SendingRatchet {
        let pickle = format!(
            r#"{{"sending_ratchet":{{{ratchet}}},"receiving_chains":{{"inner":[{chains}]}}}}"#
        );
        SendingRatchet::parse(pickle.as_bytes())
    }

    fn active(index: u64) -> String {
        let chain = format!(r#""symmetric_key_ratchet":{{"key":[1],"index":{index}}}"#);
        format!(r#""type":"active",{COUNT},"active_ratchet":{{"root_key":[2]}},{chain}"#)
    }

    #[test]
    fn a_ratchet_that_encrypted_nothing_is_unused() {
        let inactive = format!(r#""type":"inactive",{COUNT},"root_key":[3]"#);
        assert_eq!(sending(&inactive, "{}"), SendingRatchet::Unused);
        // The chain was begun by an attempt to decrypt another session's message.
        assert_eq!(sending(&active(0), "{}"), SendingRatchet::Unused);
        // A session that we created.
        assert!(matches!(sending(&active(0), ""), SendingRatchet::Used(_)));
        assert!(matches!(sending(&active(1), "{}"), SendingRatchet::Used(_)));
        assert_ne!(sending(&active(1), "{}"), sending(&active(2), "{}"));
        // Receiving does not change it.
        assert_eq!(sending(&active(1), "{}"), sending(&active(1), "{},{}"));
    }

    #[test]
    fn a_pickle_of_another_form_is_unknown() {
        assert_eq!(sending(r#""type":"inactive","root_key":[3]"#, "{}"), SendingRatchet::Unknown);
        let without_count = active(1).replace("ratchet_count", "count");
        assert_eq!(sending(&without_count, "{}"), SendingRatchet::Unknown);
        for pickle in
            ["", "[]", r#"{"sending_ratchet":{}}"#, r#"{"receiving_chains":{"inner":[]}}"#]
        {
            assert_eq!(SendingRatchet::parse(pickle.as_bytes()), SendingRatchet::Unknown);
        }
    }
}
