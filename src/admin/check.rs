//! What was looked at, and what to do about it.

use serde::Serialize;

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Check {
    /// What was looked at: a few words, always the same.
    pub name: &'static str,
    /// How it is.
    pub status: CheckStatus,
    /// What was found.
    pub found: String,
    /// What to do, unless it is in order.
    pub advice: Option<String>,
    /// Where the documentation explains it: a file of the repository, with an anchor.
    pub doc: Option<&'static str>,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CheckStatus {
    /// In order.
    Ok,
    /// It may be meant to be so.
    Warning,
    /// It does harm, or soon will.
    Problem,
    /// It could not be looked at: the advice says what is missing.
    NotChecked,
}

impl Check {
    pub(super) fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: CheckStatus::Ok, found: found.into(), advice: None, doc: None }
    }

    pub(super) fn warning(
        name: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let advice = Some(advice.into());
        Self { status: CheckStatus::Warning, advice, ..Self::ok(name, found) }
    }

    /// `doc` is the page that explains it.
    pub(super) fn problem(
        name: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
        doc: &'static str,
    ) -> Self {
        Self { status: CheckStatus::Problem, ..Self::warning(name, found, advice).see(doc) }
    }

    pub(super) fn not_checked(
        name: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { status: CheckStatus::NotChecked, ..Self::warning(name, found, advice) }
    }

    /// The same with a page that explains it.
    pub(super) fn see(self, doc: &'static str) -> Self {
        Self { doc: Some(doc), ..self }
    }
}
