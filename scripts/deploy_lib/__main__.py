"""All checks."""

import sys

from e2e_lib.processes import Scratch
from . import database, files, queries
from .report import Report


def main() -> int:
    report = Report()
    scratch = Scratch()
    try:
        files.check(report, scratch.path)
        queries.check(report, scratch.path)
        database.check(report, scratch.path)
    finally:
        scratch.remove()
    return report.end()


sys.exit(main())
