//! Prints violations with the lines of the history that show them.

use super::{Report, Violation};
use crate::concurrent::history::{History, Note, Outcome};

/// The lines of the history that concern a violation: those of its operations, the first and last other
/// lines of its openings, and the claims granted in between.
fn excerpt(history: &History, violation: &Violation) -> String {
    let names: Vec<_> = violation.about.iter().map(|name| format!("\"{name}\"")).collect();
    let of_account = history.lines.iter().filter(|line| line.account == violation.account);
    let texts = of_account.map(|line| (line, serde_json::to_string(line).unwrap()));
    let (about, others): (Vec<_>, Vec<_>) =
        texts.partition(|(_, text)| names.iter().any(|name| text.contains(name)));
    let is_named = |note: &Note| match note {
        Note::Claim { .. } | Note::Claimed { .. } | Note::Owned { .. } => true,
        Note::Write { op, .. } | Note::Written { op, .. } | Note::Committed { op, .. } => {
            violation.about.contains(op)
        }
        _ => false,
    };
    let (mut lines, others_about): (Vec<_>, Vec<_>) =
        about.into_iter().partition(|(line, _)| is_named(&line.note));
    let (first, last) = (0..others_about.len()).partition::<Vec<_>, _>(|at| *at < 4);
    let last = last.into_iter().rev().take(4);
    lines.extend(first.into_iter().chain(last).map(|at| others_about[at].clone()));
    let (begun, ended) =
        (lines.iter().map(|(line, _)| line.at).min(), lines.iter().map(|(line, _)| line.at).max());
    let granted = others.into_iter().filter(|(line, _)| {
        matches!(line.note, Note::Claimed { outcome: Outcome::Ok, .. })
            && Some(line.at) > begun
            && Some(line.at) < ended
    });
    lines.extend(granted.take(12));
    lines.sort_by_key(|(line, _)| line.at);
    lines.iter().take(60).map(|(_, text)| format!("    {text}\n")).collect()
}

/// Number of violations that are printed with their lines.
const MAX_EXCERPTS: usize = 20;

impl Report {
    /// The violations, and the lines that show them.
    pub fn render(&self, history: &History) -> String {
        let mut text = String::new();
        for (number, violation) in self.violations.iter().enumerate() {
            let Violation { rule, account, text: what, .. } = violation;
            text += &format!("{rule:?} of {account}: {what}\n");
            if number < MAX_EXCERPTS {
                text += &excerpt(history, violation);
            }
        }
        text + &format!("{} violations\n", self.violations.len())
    }
}
