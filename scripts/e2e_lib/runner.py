"""`scripts/e2e`: runs the cases one after the other."""

import argparse
import asyncio
import shutil
import signal
import sys
import time
import traceback

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
    parser.add_argument(
        "--database", choices=["embedded", "shared"], default="embedded",
        help="an embedded server per bot, or one server for all bots",
    )
    parser.add_argument(
        "--latency", action="store_true", help="run no cases, measure send-to-webhook latency",
    )
    given = parser.parse_args()
    words = lambda values: [name for value in values for name in value.split(",") if name]
    given.only, given.skip = words(given.only), words(given.skip)
    if unknown := [name for name in given.only + given.skip if name not in CASES]:
        parser.error(f"unknown case {', '.join(unknown)}; scripts/e2e --list lists the cases")
    return given


async def run(case: Case, synapse: Synapse, scratch: Scratch, number: int, database) -> str | None:
    """Run a case. Returns the reason if it failed."""
    name = case.name if number == 1 else f"{case.name}_{number}"
    harness = Harness(synapse, scratch.path / name, LOGS / name, name, database)
    try:
        await harness.open(**case.options)
        out_of_order = await case.run(harness)
        await harness.check(out_of_order or [])
        return None
    except (Failure, Timeout) as reason:
        return str(reason)
    except Exception:
        return traceback.format_exc()
    finally:
        try:
            await harness.close()
            if not synapse.child.running:
                await synapse.start()
        except Exception as reason:
            print(f"     cleaning up: {reason}")
        case.summary = figures(harness)


def figures(harness: Harness) -> str:
    if not harness.sent:
        return ""
    if isinstance(harness.bridge, Example) and not harness.sink.delivered:
        return harness.bridge.figures(len(harness.sent))
    arrived = len(harness.sent) - len(harness.missing())
    duplicates = harness.sink.duplicates
    return f"{arrived} of {len(harness.sent)} arrived" + (f", {duplicates} duplicates" if duplicates else "")


def choose(given) -> list[Case]:
    wanted = lambda name: (not given.only or name in given.only) and name not in given.skip
    return [case for name, case in CASES.items() if wanted(name)]


async def main() -> int:
    given = arguments()
    if given.latency:
        chosen = [Case("latency", latency.measure)]
    else:
        chosen = choose(given)
    if given.list:
        width = max(map(len, CASES))
        for case in chosen:
            print(f"{case.name:{width}}  {case.title}")
        return 0
    task = asyncio.current_task()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    shutil.rmtree(LOGS, ignore_errors=True)
    scratch = Scratch()
    synapse = Synapse(scratch.path / "synapse", LOGS / "synapse.log")
    postgres = Postgres(scratch.path / "postgres", LOGS / "postgres.log")
    database = postgres.url if given.database == "shared" else None
    passed, failed = 0, []
    try:
        await synapse.start()
        if database:
            await postgres.start()
        width = max(len(case.name) for case in chosen)
        for case in chosen:
            for number in range(1, given.repeat + 1):
                began = time.monotonic()
                reason = await run(case, synapse, scratch, number, database)
                word = "FAIL" if reason else "ok  "
                took = time.monotonic() - began
                print(f"{word} {case.name:{width}}  {took:5.1f} s  {case.summary}", flush=True)
                if reason:
                    failed.append(case.name)
                    print("     " + reason.replace("\n", "\n     "), flush=True)
                else:
                    passed += 1
    finally:
        await synapse.close()
        await postgres.close()
        scratch.remove()
    print(f"\n{passed} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
