//! The passphrase or key that an account is encrypted with.

use zeroize::{Zeroize, ZeroizeOnDrop};

/// The secret that unlocks an account's cipher; wiped from memory on drop, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) enum Secret {
    Passphrase(String),
    Key(Box<[u8; 32]>),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Passphrase(_) => "Passphrase(…)",
            Self::Key(_) => "Key(…)",
        })
    }
}
