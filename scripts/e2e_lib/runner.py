"""`scripts/e2e`: runs the cases, some at a time; each lane of them has a Synapse of its own."""

import argparse
import asyncio
import shutil
import signal
import sys
import time
import traceback
from collections import deque
from pathlib import Path

from . import latency
from .bridge import ROOT
from .cases import CASES, Case
from .example import Example
from .harness import Failure, Harness
from .postgres import Postgres
from .processes import Scratch, Timeout
from .synapse import Synapse

LOGS = ROOT / "target" / "e2e" / "logs"


def arguments():
    parser = argparse.ArgumentParser(
        prog="scripts/e2e", description="End-to-end tests of the webhook bridge.",
    )
    parser.add_argument("--only", metavar="NAME[,NAME]", action="append", default=[], help="run only these cases")
    parser.add_argument("--skip", metavar="NAME[,NAME]", action="append", default=[], help="skip these cases")
    parser.add_argument("--list", action="store_true", help="list the cases")
    parser.add_argument("--repeat", metavar="N", type=int, default=1, help="run each N times")
    parser.add_argument("--jobs", metavar="N", type=int, default=3, help="run N cases at a time (3)")
    parser.add_argument(
        "--database", choices=["embedded", "shared"], default="embedded",
        help="an embedded server per bot, or one server for all bots",
    )
    parser.add_argument(
        "--latency", action="store_true", help="run no cases, measure send-to-webhook latency",
    )
    given = parser.parse_args()
    if given.jobs < 1:
        parser.error("--jobs must be at least 1")
    words = lambda values: [name for value in values for name in value.split(",") if name]
    given.only, given.skip = words(given.only), words(given.skip)
    if unknown := [name for name in given.only + given.skip if name not in CASES]:
        parser.error(f"unknown case {', '.join(unknown)}; scripts/e2e --list lists the cases")
    return given


async def run(case: Case, synapse: Synapse, scratch: Path, number: int, database) -> tuple[str | None, str]:
    """Run a case. Returns the reason if it failed, and its figures."""
    name = case.name if number == 1 else f"{case.name}_{number}"
    harness = Harness(synapse, scratch / name, LOGS / name, name, database)
    failure = None
    try:
        await harness.open(**case.options)
        out_of_order = await case.run(harness)
        await harness.check(out_of_order or [])
    except (Failure, Timeout) as reason:
        failure = str(reason)
    except Exception:
        failure = traceback.format_exc()
    finally:
        try:
            await harness.close()
            if not synapse.child.running:
                await synapse.start()
        except Exception as reason:
            print(f"     cleaning up: {reason}")
    return failure, figures(harness)


def figures(harness: Harness) -> str:
    if not harness.sent:
        return ""
    if isinstance(harness.bridge, Example) and not harness.sink.delivered:
        return harness.bridge.figures(len(harness.sent))
    arrived = len(harness.sent) - len(harness.missing())
    duplicates = harness.sink.duplicates
    return f"{arrived} of {len(harness.sent)} arrived" + (f", {duplicates} duplicates" if duplicates else "")


def choose(given) -> list[Case]:
    wanted = lambda case: case.name in given.only if given.only else given.list or not case.slow
    chosen = [case for case in CASES.values() if wanted(case) and case.name not in given.skip]
    return sorted(chosen, key=lambda case: not case.long)


class Lane:
    """Runs one case after the other on servers of its own."""

    def __init__(self, name: str, directory: Path, shared_database: bool):
        self.scratch = directory / name
        self.synapse = Synapse(self.scratch / "synapse", LOGS / f"synapse-{name}.log")
        self.postgres = Postgres(self.scratch / "postgres", LOGS / f"postgres-{name}.log")
        self.database = self.postgres.url if shared_database else None

    async def run(self, queue: deque[tuple[Case, int]], width: int) -> list[bool]:
        """Take cases from the queue until it is empty. Returns which of them passed."""
        passed = []
        try:
            await self.synapse.start()
            if self.database:
                await self.postgres.start()
            while queue:
                case, number = queue.popleft()
                began = time.monotonic()
                reason, summary = await run(case, self.synapse, self.scratch, number, self.database)
                word = "FAIL" if reason else "ok  "
                took = time.monotonic() - began
                print(f"{word} {case.name:{width}}  {took:5.1f} s  {summary}", flush=True)
                if reason:
                    print("     " + reason.replace("\n", "\n     "), flush=True)
                passed.append(not reason)
        finally:
            await self.synapse.close()
            await self.postgres.close()
        return passed


async def main() -> int:
    given = arguments()
    if given.latency:
        chosen = [Case("latency", latency.measure)]
    else:
        chosen = choose(given)
    width = max(map(len, CASES))
    if given.list:
        for case in chosen:
            print(f"{case.name:{width}}  {case.title}{' (only if named)' * case.slow}")
        return 0
    task = asyncio.current_task()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    shutil.rmtree(LOGS, ignore_errors=True)
    queue = deque((case, number) for case in chosen for number in range(1, given.repeat + 1))
    scratch = Scratch()
    try:
        lanes = [
            Lane(str(number + 1), scratch.path, given.database == "shared")
            for number in range(min(given.jobs, len(queue)))
        ]
        results = await asyncio.gather(*(lane.run(queue, width) for lane in lanes), return_exceptions=True)
    finally:
        scratch.remove()
    if errors := [result for result in results if isinstance(result, BaseException)]:
        raise errors[0]
    passed = [ok for result in results for ok in result]
    print(f"\n{passed.count(True)} passed, {passed.count(False)} failed")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
