"""Runs checks one after the other, and prints what passed, failed or could not be tested."""

import shutil
import subprocess
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "examples" / "webhook_bridge" / "deploy"


class Failure(Exception):
    """An expectation was not met."""


class NotTested(Exception):
    """Something that the check needs is missing here."""


def expect(true, what: str):
    if not true:
        raise Failure(what)


def need(program: str, why: str) -> str:
    """The path of a program."""
    path = shutil.which(program)
    if not path:
        raise NotTested(f"{program} is missing: {why}")
    return path


def run(*command, fails: bool = False, **options) -> str:
    """Standard output and error of a command, which must succeed, or with `fails` must not."""
    options = {"stdin": subprocess.DEVNULL, **options} if "input" not in options else options
    done = subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    if (done.returncode != 0) != fails:
        wanted = "a failure" if fails else "success"
        raise Failure(f"{command[0]} ended with {done.returncode} instead of {wanted}\n{done.stdout}")
    return done.stdout


class Report:
    def __init__(self):
        self.passed, self.failed, self.untested = 0, 0, []

    def check(self, title: str, function, *arguments):
        try:
            function(*arguments)
        except NotTested as why:
            self.untested.append(f"{title}: {why}")
            print(f"NOT TESTED {self.untested[-1]}")
        except Failure as why:
            self.failed += 1
            print(f"✗ {title}: {why}")
        except Exception:
            self.failed += 1
            print(f"✗ {title}:\n{traceback.format_exc()}")
        else:
            self.passed += 1
            print(f"✓ {title}")

    def not_tested(self, title: str, why: str):
        """Something that is never tested here."""
        self.untested.append(f"{title}: {why}")
        print(f"NOT TESTED {self.untested[-1]}")

    def end(self) -> int:
        print(f"{self.passed} checks passed, {self.failed} failed, {len(self.untested)} not tested")
        return 1 if self.failed or not self.passed else 0
