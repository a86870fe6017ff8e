"""The procedures of docs/operations.md, as they are written there."""

from .bridge import ROOT


def blocks(heading: str, language: str) -> list[str]:
    """The code blocks of a section."""
    page = (ROOT / "docs" / "operations.md").read_text()
    (section,) = [part for part in page.split("\n## ") if part.startswith(heading + "\n")]
    parts = section.split(f"```{language}\n")[1:]
    return [part.split("```")[0] for part in parts]


def new_device(account: str) -> str:
    """The SQL that removes a device's own state."""
    (sql,) = blocks("Rollback detection", "sql")
    assert "'alerts-bot'" in sql
    return sql.replace("'alerts-bot'", f"'{account}'")
