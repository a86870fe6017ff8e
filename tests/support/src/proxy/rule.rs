//! What becomes of a message.

use std::time::Duration;

/// What the client sends: a message that the rule decides on.
pub struct Message<'a> {
    pub tag: u8,
    pub body: &'a [u8],
    /// The server's process for this connection.
    pub backend: u32,
}

impl Message<'_> {
    /// Whether it is a simple query that begins so.
    pub fn is_query(&self, text: &str) -> bool {
        self.tag == b'Q' && self.body.starts_with(text.as_bytes())
    }

    /// A statement that the server is to run.
    pub fn runs(&self) -> bool {
        matches!(self.tag, b'Q' | b'E')
    }
}

/// What becomes of a message.
#[derive(Clone, Debug)]
pub enum Action {
    Pass,
    /// It never arrives.
    Drop,
    /// Another simple query arrives in its place.
    Instead(&'static str),
    /// The connection breaks before it arrives.
    CutBefore,
    /// The connection breaks in the middle of it.
    CutDuring,
    /// The server has done it, and its answer is lost with the connection.
    CutAfter,
    /// It arrives; the client's end breaks, and the server does not notice.
    CutClient,
    /// It arrives, and nothing after it either way: neither end notices.
    BlackHole,
    /// It arrives; from now on answers take so long.
    Delay(Duration),
    /// It and all behind it wait until [`super::Proxy::let_go`], also when the client has gone.
    Hold,
    /// It and all behind it arrive, but the client hears an error of this severity and SQLSTATE in
    /// the server's place. After `COMMIT` has been answered its end breaks.
    Impostor(&'static str, &'static str),
}

pub(super) type Rule = Box<dyn FnMut(&Message<'_>) -> Action + Send>;
