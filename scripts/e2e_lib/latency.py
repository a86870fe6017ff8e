"""`scripts/e2e --latency`: how long a message takes from its sender to the webhook."""

import statistics
import time

from .processes import until
from .world import World

MESSAGES = 100


async def measure(world: World):
    """Messages one at a time, then one after a `kill -9`; prints what each took."""
    await world.up()
    await world.bridge.ready()
    await world.send(3, "to warm up")
    await world.arrived()
    took = []
    for number in range(MESSAGES):
        took.append(await one(world, f"number {number}"))
    took.sort()
    print(
        f"send to webhook, {MESSAGES} messages: median {milliseconds(statistics.median(took))}, "
        f"95 of 100 within {milliseconds(took[MESSAGES * 95 // 100])}, "
        f"shortest {milliseconds(took[0])}, longest {milliseconds(took[-1])}"
    )
    await world.bridge.kill9()
    began = time.monotonic()
    await world.bridge.start()
    await one(world, "after kill -9")
    print(f"start after kill -9 to the next delivery: {milliseconds(time.monotonic() - began)}")


async def one(world: World, what: str) -> float:
    (sent,) = await world.send(1, what)
    await until(lambda: not world.missing([sent]), 60, "the message", 0.001, world.bridge.tail)
    return world.sink.first()[sent.event_id].at - sent.at


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
