//! Faults seeded into a good history. `None` if the history has no suitable operation.

use std::collections::HashMap;

use super::Rule;
use crate::concurrent::history::{Line, Note, Outcome};

type Seed = fn(&mut Vec<Line>) -> Option<()>;

pub const ALL: &[(&str, Rule, Seed)] = &[
    ("a lost write", Rule::Order, |lines| lost_write(lines)),
    ("a write lost from the database", Rule::Commits, lost_from_the_database),
    ("a dropped save that was not finished", Rule::Commits, unfinished),
    ("a stale read", Rule::Order, stale_read),
    ("a reused index", Rule::Reuse, |lines| reused_index(lines)),
    ("a transaction that was read in part", Rule::Order, partly_read),
    ("a transaction that was committed in part", Rule::Commits, partly_committed),
    ("a write acknowledged after a newer claim", Rule::Ownership, late_acknowledgement),
    ("a late write of a superseded owner", Rule::Order, late_write),
    ("a commit of a superseded owner", Rule::Fence, |lines| committed_when_superseded(lines)),
    ("a late claim", Rule::Fence, late_claim),
    ("a wrong count", Rule::Count, |lines| wrong_count(lines)),
    ("a write committed twice", Rule::Commits, committed_twice),
    ("a rolled back write that was committed", Rule::Commits, committed_after_rollback),
    ("a rolled back write that was read", Rule::Unwritten, read_after_rollback),
    ("a read of the future", Rule::Unwritten, |lines| read_of_the_future(lines)),
    ("a value that was never written", Rule::Unwritten, never_written),
    ("a superseded owner without a successor", Rule::FalseTakeover, false_takeover),
    ("a false rollback", Rule::Damage, false_rollback),
];

/// An acknowledged write: its name, and when it began and ended.
fn acknowledged(lines: &[Line], register: &str) -> Vec<(String, u64, u64)> {
    let begun = lines.iter().filter_map(|line| match &line.note {
        Note::Write { op, register: found, .. } if found == register => Some((op, line.at)),
        _ => None,
    });
    let ended = |name: &str| {
        lines.iter().find_map(|line| match &line.note {
            Note::Written { op, outcome: Outcome::Ok } if op == name => Some(line.at),
            _ => None,
        })
    };
    begun.filter_map(|(op, begun)| Some((op.clone(), begun, ended(op)?))).collect()
}

/// Two acknowledged writes, the second begun after the first had ended, and the last one.
fn in_order(lines: &[Line], register: &str) -> Option<[(String, u64, u64); 3]> {
    let writes = acknowledged(lines, register);
    let (first, last) = (writes.first()?.clone(), writes.last()?.clone());
    let second = writes.iter().find(|(_, begun, _)| *begun > first.2)?.clone();
    (second.2 < last.1).then_some([first, second, last])
}

/// A reader's read, after everything else.
fn read_at_the_end(lines: &mut Vec<Line>, (register, key): (&str, &str), value: &str) {
    let line = lines.iter().rev().find(|line| matches!(line.note, Note::Read { .. })).unwrap();
    let (mut line, at) = (line.clone(), lines.last().unwrap().at);
    line.at = at + 20;
    line.note = Note::Read {
        begun: at + 10,
        opening: None,
        register: register.to_owned(),
        key: key.to_owned(),
        value: Some(value.to_owned()),
    };
    lines.push(line);
}

/// All readers continue to read the previous value.
fn lost_write(lines: &mut [Line]) -> Option<()> {
    let writes = acknowledged(lines, "lone-0");
    let first = writes.first()?;
    let later = writes.iter().filter(|(_, begun, _)| *begun > first.2);
    let lost: HashMap<&String, u64> = later.map(|(op, _, ended)| (op, *ended)).collect();
    // All later ones are lost.
    let mut changed = None;
    for line in lines.iter_mut() {
        if let Note::Read { begun, opening, value, .. } = &mut line.note
            && let Some(ended) = value.as_ref().and_then(|value| lost.get(value))
        {
            changed = if *begun > *ended { Some(()) } else { changed };
            (*opening, *value) = (None, Some(first.0.clone()));
        }
    }
    changed
}

fn lost_from_the_database(lines: &mut Vec<Line>) -> Option<()> {
    let lost = acknowledged(lines, "lone-0").pop()?.0;
    lines.retain(|line| !matches!(&line.note, Note::Committed { op, .. } if *op == lost));
    Some(())
}

/// A write whose future was dropped, which was never committed although its owner wrote later.
fn unfinished(lines: &mut Vec<Line>) -> Option<()> {
    let opening = first_owner(lines)?;
    let is_owners = |op: &str| {
        lines.iter().any(|line| {
            matches!(&line.note, Note::Write { op: found, opening: by, .. } if found == op && *by == opening)
        })
    };
    let writes = acknowledged(lines, "lone-0");
    let mut writes = writes.iter().filter(|(op, ..)| is_owners(op));
    let (dropped, last) = (writes.next()?.clone(), writes.next_back()?.clone());
    if last.1 < dropped.2 {
        return None;
    }
    let dropped = dropped.0;
    lines.retain(|line| !matches!(&line.note, Note::Committed { op, .. } if *op == dropped));
    lines.iter_mut().find_map(|line| match &mut line.note {
        Note::Written { op, outcome } if *op == dropped => {
            *outcome = Outcome::Dropped;
            Some(())
        }
        _ => None,
    })
}

fn stale_read(lines: &mut Vec<Line>) -> Option<()> {
    let [first, ..] = in_order(lines, "lone-0")?;
    read_at_the_end(lines, ("lone-0", "a"), &first.0);
    Some(())
}

fn reused_index(lines: &mut [Line]) -> Option<()> {
    let mut sent = lines.iter_mut().filter_map(|line| match &mut line.note {
        Note::Sent { index, .. } => Some(index),
        _ => None,
    });
    let first = *sent.next()?;
    *sent.next_back()? = first;
    Some(())
}

/// A reader reads one key of the newest transaction, and an older value of the other key.
fn partly_read(lines: &mut Vec<Line>) -> Option<()> {
    let [_, second, last] = in_order(lines, "pair-0")?;
    read_at_the_end(lines, ("pair-0", "a"), &last.0);
    read_at_the_end(lines, ("pair-0", "b"), &second.0);
    Some(())
}

fn partly_committed(lines: &mut Vec<Line>) -> Option<()> {
    let torn = acknowledged(lines, "pair-0").pop()?.0;
    let half = |line: &Line| matches!(&line.note, Note::Committed { op, row, .. } if *op == torn && row == "b");
    lines.retain(|line| !half(line));
    Some(())
}

/// The first owner's write is acknowledged at the end.
fn late_acknowledgement(lines: &mut Vec<Line>) -> Option<()> {
    let opening = first_owner(lines)?;
    write(lines, opening, Outcome::Ok);
    Some(())
}

/// The same with an unknown outcome, begun while it was the owner, and read at the end only.
fn late_write(lines: &mut Vec<Line>) -> Option<()> {
    let opening = first_owner(lines)?;
    let error = Outcome::Error { kind: "Database".to_owned(), text: String::new() };
    write(lines, opening, error);
    let begun = lines.len() - 2;
    let claimed = lines.iter().find(|line| matches!(line.note, Note::Claimed { .. }))?.at;
    lines[begun].at = claimed + 1;
    read_at_the_end(lines, ("lone-0", "a"), "p:late");
    Some(())
}

fn first_owner(lines: &[Line]) -> Option<String> {
    let mut claims = lines.iter().filter_map(|line| match &line.note {
        Note::Claimed { opening, .. } => Some(opening.clone()),
        _ => None,
    });
    let first = claims.next()?;
    claims.next().map(|_| first)
}

fn write(lines: &mut Vec<Line>, opening: String, outcome: Outcome) {
    let (op, register) = ("p:late".to_owned(), "lone-0".to_owned());
    let (at, template) = (lines.last().unwrap().at, lines[0].clone());
    let begun = Note::Write { op: op.clone(), opening, register, rows: 1, atomically: false };
    lines.push(Line { at: at + 1, note: begun, ..template.clone() });
    lines.push(Line { at: at + 2, note: Note::Written { op, outcome }, ..template });
}

/// The first owner's last commit comes after the last claim.
fn committed_when_superseded(lines: &mut [Line]) -> Option<()> {
    let first = first_owner(lines)?;
    let its = lines.iter().find_map(|line| match &line.note {
        Note::Write { op, opening, .. } if *opening == first => Some(op.clone()),
        _ => None,
    })?;
    lines.iter_mut().find_map(|line| match &mut line.note {
        Note::Committed { number, op, .. } if *op == its => {
            *number = i64::MAX;
            Some(())
        }
        _ => None,
    })
}

/// The first owner's claim takes effect once more, after the last.
fn late_claim(lines: &mut Vec<Line>) -> Option<()> {
    let (opening, template) = (first_owner(lines)?, lines[0].clone());
    lines.push(Line { note: Note::Owned { number: i64::MAX, opening }, ..template });
    Some(())
}

fn wrong_count(lines: &mut [Line]) -> Option<()> {
    lines.iter_mut().rev().find_map(|line| match &mut line.note {
        Note::Count { commits } => {
            *commits += 1;
            Some(())
        }
        _ => None,
    })
}

fn committed_twice(lines: &mut Vec<Line>) -> Option<()> {
    let committed = lines.iter().find(|line| matches!(line.note, Note::Committed { .. }));
    let mut again = committed?.clone();
    if let Note::Committed { transaction, .. } = &mut again.note {
        transaction.push_str(" again");
    }
    lines.push(again);
    Some(())
}

fn rolled_back(lines: &[Line]) -> Option<(String, String)> {
    let rolled_back = lines.iter().find_map(|line| match &line.note {
        Note::Written { op, outcome: Outcome::Nothing } => Some(op.clone()),
        _ => None,
    })?;
    lines.iter().find_map(|line| match &line.note {
        Note::Write { op, register, .. } if *op == rolled_back => {
            Some((op.clone(), register.clone()))
        }
        _ => None,
    })
}

fn committed_after_rollback(lines: &mut Vec<Line>) -> Option<()> {
    let (op, _) = rolled_back(lines)?;
    let (number, row, transaction) = (i64::MAX, "a".to_owned(), "another".to_owned());
    let template = lines[0].clone();
    lines.push(Line { note: Note::Committed { number, op, row, transaction }, ..template });
    Some(())
}

fn read_after_rollback(lines: &mut Vec<Line>) -> Option<()> {
    let (op, register) = rolled_back(lines)?;
    read_at_the_end(lines, (&register, "a"), &op);
    Some(())
}

fn read_of_the_future(lines: &mut [Line]) -> Option<()> {
    let last = acknowledged(lines, "lone-0").pop()?;
    lines.iter_mut().find_map(|line| match &mut line.note {
        Note::Read { opening, register, value, .. } if register == "lone-0" && line.at < last.1 => {
            (*opening, *value) = (None, Some(last.0.clone()));
            Some(())
        }
        _ => None,
    })
}

fn never_written(lines: &mut Vec<Line>) -> Option<()> {
    read_at_the_end(lines, ("lone-0", "a"), "p:never");
    Some(())
}

/// The newest owner gets `Superseded`.
fn false_takeover(lines: &mut Vec<Line>) -> Option<()> {
    let mut ends = lines.iter().rev().filter_map(|line| match &line.note {
        Note::Claimed { opening, .. } => Some((opening.clone(), line.at)),
        _ => None,
    });
    let ((newest, _), (_, before)) = (ends.next()?, ends.next()?);
    let begun = lines
        .iter()
        .find(|line| matches!(&line.note, Note::Claim { opening, .. } if *opening == newest))?;
    // Concurrent claims may have taken effect in either order.
    if begun.at < before {
        return None;
    }
    push_failure(lines, newest, "Superseded")
}

fn false_rollback(lines: &mut Vec<Line>) -> Option<()> {
    let opening = first_owner(lines)?;
    push_failure(lines, opening, "DatabaseRolledBack")
}

fn push_failure(lines: &mut Vec<Line>, opening: String, kind: &str) -> Option<()> {
    let outcome = Outcome::Error { kind: kind.to_owned(), text: String::new() };
    let (at, template) = (lines.last()?.at, lines[0].clone());
    let note = Note::Failed { opening: Some(opening), outcome };
    lines.push(Line { at: at + 1, note, ..template });
    Some(())
}
