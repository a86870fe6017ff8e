//! The owner tokens of one opener, over reopenings.

use uuid::Uuid;

/// A random value: numbers would repeat after a restore or a failover.
pub(crate) fn random_id() -> [u8; 16] {
    Uuid::new_v4().into_bytes()
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Tokens {
    /// Confirmed ones, the newest last.
    confirmed: Vec<[u8; 16]>,
    /// Asked for, without an answer: the account may have them.
    requested: Vec<[u8; 16]>,
    /// How many commits the database had when it was last asked.
    seen: i64,
}

impl Tokens {
    pub(crate) fn current(&self) -> Option<[u8; 16]> {
        self.confirmed.last().copied()
    }

    /// The account has this token and so many commits now.
    pub(crate) fn confirm(&mut self, token: [u8; 16], commits: i64) {
        self.requested.clear();
        if self.current() != Some(token) {
            self.confirmed.push(token);
        }
        self.seen = commits;
    }

    /// Notes a token that the account may have from now on.
    pub(crate) fn request(&mut self, token: [u8; 16]) {
        self.requested.push(token);
    }

    pub(crate) fn contains(&self, token: &[u8]) -> bool {
        self.confirmed.iter().chain(&self.requested).any(|ours| ours == token)
    }

    /// Whether the account may have this token, if there was no takeover.
    pub(crate) fn may_be_current(&self, token: &[u8]) -> bool {
        self.current().iter().chain(&self.requested).any(|ours| ours == token)
    }

    /// The token that the account may have when this one was refused: the current one, and behind it
    /// those that were asked for.
    pub(crate) fn instead(&self, refused: &[u8; 16]) -> Option<[u8; 16]> {
        let ours: Vec<_> = self.current().iter().chain(&self.requested).copied().collect();
        let tried = ours.iter().position(|token| token == refused);
        ours.get(tried.map_or(0, |tried| tried + 1)).copied()
    }

    /// A token that we have since replaced: finding it in the database means a restore.
    pub(crate) fn is_former(&self, token: &[u8]) -> bool {
        self.contains(token) && !self.may_be_current(token)
    }

    pub(crate) fn seen(&self) -> i64 {
        self.seen
    }

    /// Notes how many commits there are, after one of ours.
    pub(crate) fn set_seen(&mut self, commits: i64) {
        self.seen = commits;
    }
}
