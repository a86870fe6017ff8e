"""`scripts/e2e --latency`: measures the time from sending a message to its delivery."""

import statistics
import time

from .harness import Harness
from .processes import until

MESSAGES = 100


async def measure(harness: Harness):
    """Send messages one at a time, then one after a `kill -9`; prints the latencies."""
    await harness.set_up()
    await harness.bridge.ready()
    await harness.send(3, "to warm up")
    await harness.until_delivered()
    took = []
    for number in range(MESSAGES):
        took.append(await one(harness, f"number {number}"))
    took.sort()
    print(
        f"send to webhook, {MESSAGES} messages: median {milliseconds(statistics.median(took))}, "
        f"95 of 100 within {milliseconds(took[MESSAGES * 95 // 100])}, "
        f"shortest {milliseconds(took[0])}, longest {milliseconds(took[-1])}"
    )
    await harness.bridge.kill9()
    began = time.monotonic()
    await harness.bridge.start()
    await one(harness, "after kill -9")
    print(f"start after kill -9 to the next delivery: {milliseconds(time.monotonic() - began)}")


async def one(harness: Harness, what: str) -> float:
    (sent,) = await harness.send(1, what)
    await until(lambda: not harness.missing([sent]), 60, "the message", 0.001, harness.bridge.tail)
    return harness.sink.first()[sent.event_id].at - sent.at


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
