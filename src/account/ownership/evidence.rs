//! What a heartbeat's answer shows of an account's ownership.

use tokio_postgres::Row;

use super::{OwnershipState, Position};
use crate::Error;

/// A lane as a heartbeat has read it.
pub(super) struct LaneRow<'a> {
    pub(super) token: &'a [u8],
    pub(super) lane: &'a str,
    pub(super) commits: i64,
    pub(super) maintenance: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evidence {
    /// The account is ours, and all of its commits are.
    Proof,
    /// Possibly a late answer, a commit of ours in flight, or one of a copy of this process.
    None,
    /// The account seems lost.
    Loss,
}

impl<'a> LaneRow<'a> {
    pub(super) fn of(row: &'a Row) -> Result<(i64, Self), Error> {
        let (token, lane) = (row.try_get(1)?, row.try_get(2)?);
        let (commits, maintenance) = (row.try_get(3)?, row.try_get(4)?);
        Ok((row.try_get(0)?, Self { token, lane, commits, maintenance }))
    }
}

impl Evidence {
    /// Of the rows of all lanes. `seen` is the owner's state before the query was sent, `known` the
    /// one when it was answered.
    pub(super) fn of(rows: &[LaneRow<'_>], seen: &OwnershipState, known: &OwnershipState) -> Self {
        // A former token may come from a late answer.
        let is_plausible = |row: &LaneRow<'_>| {
            row.commits >= seen.position(row.lane).commits && known.tokens.contains(row.token)
        };
        if !rows.iter().all(is_plausible) {
            return Self::Loss;
        }
        let ours = seen.tokens.current();
        let is_ours = |row: &LaneRow<'_>| ours.is_some_and(|ours| ours == row.token);
        // Another commit proves nothing: one of ours does so itself.
        let is_known = |(lane, position): (&str, Position)| {
            rows.iter().any(|row| row.lane == lane && row.commits <= position.commits)
        };
        match rows.iter().all(is_ours) && known.lanes().all(is_known) {
            true => Self::Proof,
            false => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Evidence, LaneRow, OwnershipState, Position};

    const TOKEN: [u8; 16] = [1; 16];

    fn state(commits: [i64; 2]) -> OwnershipState {
        let mut state = OwnershipState::default();
        state.tokens.confirm(TOKEN);
        for (lane, commits) in ["one", "two"].into_iter().zip(commits) {
            state.set_position(lane, Position { commits, last: None });
        }
        state
    }

    fn row<'a>(lane: &'a str, commits: i64, token: &'a [u8]) -> LaneRow<'a> {
        LaneRow { token, lane, commits, maintenance: 0 }
    }

    fn found(commits: [i64; 2]) -> [LaneRow<'static>; 2] {
        [row("one", commits[0], &TOKEN), row("two", commits[1], &TOKEN)]
    }

    #[test]
    fn lanes_as_they_are_known_are_a_proof() {
        let known = state([5, 7]);
        assert_eq!(Evidence::of(&found([5, 7]), &known, &known), Evidence::Proof);
        // Commits that were answered while the heartbeat was under way.
        for commits in [[5, 7], [6, 8]] {
            let evidence = Evidence::of(&found(commits), &state([5, 7]), &state([6, 8]));
            assert_eq!(evidence, Evidence::Proof);
        }
        // A lane that this owner has not opened.
        let [one, two] = found([5, 7]);
        let rows = [one, two, row("three", 9, &TOKEN)];
        assert_eq!(Evidence::of(&rows, &known, &known), Evidence::Proof);
    }

    /// Of this owner, or of its copy.
    #[test]
    fn a_commit_that_is_not_known_proves_nothing() {
        let known = state([5, 7]);
        for commits in [[6, 7], [5, 8]] {
            assert_eq!(Evidence::of(&found(commits), &known, &known), Evidence::None);
        }
    }

    #[test]
    fn a_lane_without_a_row_proves_nothing() {
        let (known, [one, _]) = (state([5, 7]), found([5, 7]));
        assert_eq!(Evidence::of(&[one], &known, &known), Evidence::None);
        assert_eq!(Evidence::of(&[], &known, &known), Evidence::None);
    }

    /// In whatever order the rows are returned.
    #[test]
    fn one_lane_proves_nothing_if_another_one_is_behind() {
        let known = state([5, 7]);
        for commits in [[5, 6], [4, 7]] {
            assert_eq!(Evidence::of(&found(commits), &known, &known), Evidence::Loss);
        }
    }

    #[test]
    fn a_former_token_proves_nothing_and_a_foreign_one_is_a_loss() {
        let (known, mut renewed) = (state([5, 7]), state([5, 7]));
        renewed.tokens.confirm([2; 16]);
        assert_eq!(Evidence::of(&found([5, 7]), &renewed, &renewed), Evidence::None);
        let [one, _] = found([5, 7]);
        let rows = [one, row("two", 7, &[3; 16])];
        assert_eq!(Evidence::of(&rows, &known, &known), Evidence::Loss);
    }
}
