//! What is wrong with a history, and the lines that show it.

use super::{Report, Violation};
use crate::concurrent::history::{History, Note, Outcome};

/// The lines of the history that concern a violation: of what its owners did besides the first and the
/// last ones, and who was given the account in between.
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
    let (mut told, others_about): (Vec<_>, Vec<_>) =
        about.into_iter().partition(|(line, _)| is_named(&line.note));
    let (first, last) = (0..others_about.len()).partition::<Vec<_>, _>(|at| *at < 4);
    let last = last.into_iter().rev().take(4);
    told.extend(first.into_iter().chain(last).map(|at| others_about[at].clone()));
    let (begun, ended) =
        (told.iter().map(|(line, _)| line.at).min(), told.iter().map(|(line, _)| line.at).max());
    let granted = others.into_iter().filter(|(line, _)| {
        matches!(line.note, Note::Claimed { outcome: Outcome::Ok, .. })
            && Some(line.at) > begun
            && Some(line.at) < ended
    });
    told.extend(granted.take(12));
    told.sort_by_key(|(line, _)| line.at);
    told.iter().take(60).map(|(_, text)| format!("    {text}\n")).collect()
}

/// How many violations are told with their lines.
const TOLD: usize = 20;

impl Report {
    /// What is wrong, and the lines that show it.
    pub fn tell(&self, history: &History) -> String {
        let mut text = String::new();
        for (number, violation) in self.violations.iter().enumerate() {
            let Violation { rule, account, text: what, .. } = violation;
            text += &format!("{rule:?} of {account}: {what}\n");
            if number < TOLD {
                text += &excerpt(history, violation);
            }
        }
        text + &format!("{} violations\n", self.violations.len())
    }
}
