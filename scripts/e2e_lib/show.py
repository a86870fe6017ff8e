"""The output of the demo: headings, ticks, one line per message."""

import os
import shutil
import sys
import unicodedata

COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
CODES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "cyan": 36}


def paint(text: str, *styles: str) -> str:
    if not COLOUR:
        return text
    return "".join(f"\x1b[{CODES[style]}m" for style in styles) + text + "\x1b[0m"


def width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def fit(text: str, columns: int) -> str:
    """Pad or truncate (with …) to exactly `columns` columns."""
    if width(text) > columns:
        while width(text) > columns - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (columns - width(text))


def line(text: str = ""):
    print(text, flush=True)


def heading(text: str):
    line()
    line(paint(text, "bold"))


def done(text: str, took: float | None = None):
    line(paint("✓ ", "green") + text + (paint(f"  {took:.1f} s", "dim") if took is not None else ""))


def note(text: str):
    line("  " + paint(text, "dim"))


def message(mark: str, style: str, who: str, body: str, remark: str):
    columns = min(shutil.get_terminal_size((96, 24)).columns, 110)
    space = max(columns - 17 - 4 - 12, 20)
    line(f"  {paint(mark, style)} {fit(who, 15)}{fit(body, space)} {paint(remark.rjust(12), 'dim')}")


def duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
