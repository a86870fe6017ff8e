//! What the proxy does with a message.

use std::time::Duration;

/// A message of the client, for which the rule chooses an action.
pub struct Message<'a> {
    pub tag: u8,
    pub body: &'a [u8],
    /// The server's process for this connection.
    pub backend: u32,
}

impl Message<'_> {
    /// Whether it is a simple query that begins with this text.
    pub fn is_query(&self, text: &str) -> bool {
        self.tag == b'Q' && self.body.starts_with(text.as_bytes())
    }

    /// Whether it executes a statement.
    pub fn runs(&self) -> bool {
        matches!(self.tag, b'Q' | b'E')
    }
}

/// What the proxy does with a message.
#[derive(Clone, Debug)]
pub enum Action {
    Pass,
    /// Discards it.
    Drop,
    /// Sends another simple query in its place.
    Instead(&'static str),
    /// Breaks the connection before it.
    CutBefore,
    /// Breaks the connection in the middle of it.
    CutDuring,
    /// Breaks the connection after the server has executed it, and discards the response.
    CutAfter,
    /// Forwards it and breaks the client's end only: the server does not notice.
    CutClient,
    /// Forwards it, and nothing after it in either direction: neither end notices.
    BlackHole,
    /// Forwards it, and delays responses from then on.
    Delay(Duration),
    /// Holds it and all later ones until [`super::Proxy::release`], even after the client has gone.
    Hold,
    /// Forwards it and all later ones, but sends the client an error with this severity and SQLSTATE in the
    /// server's place. Breaks the connection after the response to `COMMIT`.
    ForgedError(&'static str, &'static str),
}

pub(super) type Rule = Box<dyn FnMut(&Message<'_>) -> Action + Send>;
