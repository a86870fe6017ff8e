//! The ownership state of an account, kept across reopenings: tokens, and the position of each
//! lane.

use std::collections::BTreeMap;

use uuid::Uuid;

/// A random value: numbers would repeat after a restore or a failover.
pub(crate) fn random_id() -> [u8; 16] {
    Uuid::new_v4().into_bytes()
}

/// The position of a lane: its number of commits, and the id of the last one or of a later fence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) commits: i64,
    /// `None` before the first commit.
    pub(crate) last: Option<[u8; 16]>,
}

impl Position {
    /// The id as a parameter.
    pub(crate) fn last(&self) -> Option<&[u8]> {
        self.last.as_ref().map(<[u8; 16]>::as_slice)
    }

    /// The position after a fence with this id.
    pub(crate) fn after_fence(self, id: [u8; 16]) -> Self {
        Self { last: Some(id), ..self }
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct OwnershipState {
    pub(crate) tokens: Tokens,
    lanes: BTreeMap<&'static str, LaneIds>,
}

#[derive(Debug, Clone, Default)]
struct LaneIds {
    position: Position,
    /// Other ids that the lane may have at this count: earlier ones, and those of fences that were
    /// not answered.
    others: Vec<Option<[u8; 16]>>,
}

impl OwnershipState {
    pub(crate) fn position(&self, lane: &str) -> Position {
        self.lanes.get(lane).map(|ids| ids.position).unwrap_or_default()
    }

    /// Records an id that the lane may have from now on.
    pub(crate) fn request_id(&mut self, lane: &'static str, id: [u8; 16]) {
        self.lanes.entry(lane).or_default().others.push(Some(id));
    }

    /// Whether the lane may have this position although no commit was counted: after a fence of
    /// this owner that was not answered, or after a failover that lost one.
    pub(crate) fn may_be_at(&self, lane: &str, found: Position) -> bool {
        self.lanes.get(lane).is_some_and(|ids| {
            found.commits == ids.position.commits && ids.others.contains(&found.last)
        })
    }

    pub(crate) fn set_position(&mut self, lane: &'static str, position: Position) {
        let ids = self.lanes.entry(lane).or_default();
        if ids.position.commits == position.commits {
            ids.others.push(ids.position.last);
        } else {
            ids.others.clear();
        }
        ids.position = position;
    }

    pub(crate) fn lanes(&self) -> impl Iterator<Item = (&'static str, Position)> + '_ {
        self.lanes.iter().map(|(lane, ids)| (*lane, ids.position))
    }
}

/// The owner tokens of one opener.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tokens {
    /// Confirmed ones, the newest last.
    confirmed: Vec<[u8; 16]>,
    /// Requested, without an answer: the account may have them.
    requested: Vec<[u8; 16]>,
}

impl Tokens {
    pub(crate) fn current(&self) -> Option<[u8; 16]> {
        self.confirmed.last().copied()
    }

    /// Records that the account has this token.
    pub(crate) fn confirm(&mut self, token: [u8; 16]) {
        self.requested.clear();
        if self.current() != Some(token) {
            self.confirmed.push(token);
        }
    }

    /// Records a token that the account may have from now on.
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

    /// A token that this owner has since replaced: finding it in the database means a restore.
    pub(crate) fn is_former(&self, token: &[u8]) -> bool {
        self.contains(token) && !self.may_be_current(token)
    }
}

#[cfg(test)]
mod tests {
    use super::{OwnershipState, Position, Tokens};

    const TOKENS: [[u8; 16]; 3] = [[1; 16], [2; 16], [3; 16]];

    #[test]
    fn a_replaced_token_is_former_and_a_requested_one_may_be_current() {
        let mut tokens = Tokens::default();
        assert_eq!(tokens.current(), None);
        tokens.confirm(TOKENS[0]);
        tokens.confirm(TOKENS[1]);
        tokens.request(TOKENS[2]);
        assert_eq!(tokens.current(), Some(TOKENS[1]));
        assert!(tokens.is_former(&TOKENS[0]) && !tokens.may_be_current(&TOKENS[0]));
        assert!(tokens.may_be_current(&TOKENS[1]) && tokens.may_be_current(&TOKENS[2]));
        assert!(!tokens.contains(&[4; 16]) && !tokens.is_former(&[4; 16]));
    }

    #[test]
    fn a_lane_may_have_the_ids_of_its_own_fences_until_a_commit_is_counted() {
        let at = |commits, last: u8| Position { commits, last: Some([last; 16]) };
        let mut known = OwnershipState::default();
        known.set_position("lane", at(3, 1));
        known.request_id("lane", [2; 16]);
        assert!(known.may_be_at("lane", at(3, 2)) && !known.may_be_at("lane", at(4, 2)));
        known.set_position("lane", at(3, 5));
        // A requested id, and an earlier one.
        assert!(known.may_be_at("lane", at(3, 2)) && known.may_be_at("lane", at(3, 1)));
        assert!(!known.may_be_at("lane", at(3, 9)) && !known.may_be_at("other", at(3, 2)));
        known.set_position("lane", at(4, 6));
        assert!(!known.may_be_at("lane", at(4, 2)) && !known.may_be_at("lane", at(3, 5)));
    }

    #[test]
    fn confirming_a_token_clears_all_requests() {
        let mut tokens = Tokens::default();
        tokens.confirm(TOKENS[0]);
        tokens.request(TOKENS[1]);
        tokens.request(TOKENS[2]);
        tokens.confirm(TOKENS[2]);
        assert!(!tokens.contains(&TOKENS[1]) && tokens.is_former(&TOKENS[0]));
        // Confirming it again adds no second one.
        tokens.confirm(TOKENS[2]);
        assert!(!tokens.is_former(&TOKENS[2]));
    }
}
