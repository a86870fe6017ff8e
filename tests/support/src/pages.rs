//! The repository's pages, in Markdown: their sections, blocks of code and anchors.

use std::collections::BTreeSet;

/// The sections of the second level: each heading, and the text below it.
pub fn sections(page: &str) -> impl Iterator<Item = (&str, &str)> {
    page.split("\n## ").skip(1).map(|section| section.split_once('\n').unwrap_or((section, "")))
}

/// The text below a heading of the second level.
pub fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    sections(page).find(|(found, _)| *found == heading).expect(heading).1
}

/// The blocks of code in a language.
pub fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let opening = format!("```{language}\n");
    let blocks = text.split(opening.as_str()).skip(1);
    blocks.map(|rest| rest.split("```").next().unwrap().trim()).collect()
}

/// The text without its code.
pub fn prose(page: &str) -> String {
    page.split("\n```").step_by(2).collect()
}

/// The anchors of a page's headings, as GitHub, GitLab and crates.io make them.
pub fn anchors(page: &str) -> BTreeSet<String> {
    let prose = prose(page);
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let text = line.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}
