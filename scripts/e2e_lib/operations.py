"""The procedures of docs/operations.md, as they are written there."""

from .bridge import ROOT


def blocks(heading: str, language: str) -> list[str]:
    """The code blocks of a section."""
    page = (ROOT / "docs" / "operations.md").read_text()
    (section,) = [part for part in page.split("\n## ") if part.startswith(heading + "\n")]
    parts = section.split(f"```{language}\n")[1:]
    return [part.split("```")[0] for part in parts]


def reset_device(account: str) -> str:
    """The command that removes a device's own state, without its question. It is refused while the heartbeat of a
    killed process still counts."""
    (command,) = blocks("Rollback detection", "sh")
    assert "alerts-bot" in command
    command = command.strip().replace("alerts-bot", account)
    return f"for attempt in $(seq 20); do {command} --yes && exit 0; sleep 1; done; exit 1"
