"""Homeserver, webhook, database or room keys are temporarily unavailable."""

import asyncio
import os
import signal
import time

from ..harness import Harness, expect
from ..postgres import Postgres
from ..processes import until
from ..sender import Sent
from . import case


@case()
async def gap(h: Harness):
    """130 messages in one room and 15 in another during an outage, more than a sync returns;
    the bridge is killed again while it catches up."""
    await h.set_up()
    other = await h.new_room(h.alice)
    await h.send(1, "before")
    await h.send(1, "before", room=other)
    await h.until_delivered()
    await h.bridge.kill9()
    await h.send(130, "in the gap")
    await h.send(15, "in the small gap", room=other)
    await h.bridge.start()
    await until(lambda: len(h.sink.first()) >= 30, 90, "the first 30 messages", detail=h.bridge.tail)
    await h.bridge.kill9()
    await h.bridge.start()
    await h.until_delivered(120)


@case(long=True)
async def many_rooms(h: Harness):
    """500 messages in 20 rooms during one outage."""
    await h.set_up()
    rooms = [h.room] + [await h.new_room(h.alice) for _ in range(19)]
    for room in rooms:
        await h.send(1, "before", room=room)
    await h.until_delivered()
    await h.bridge.kill9()
    for _ in range(5):
        for room in rooms:
            await h.send(5, "in the outage", room=room)
        # Half of the rooms get several keys.
        for room in rooms[::2]:
            h.alice.rotate(room)
    await h.bridge.start()
    await h.until_delivered(180)


async def held_back(h: Harness) -> tuple[list[Sent], list]:
    """Messages without their key, and the requests that would send it; later keys are sent again."""
    await h.set_up()
    await h.send(2, "with its key")
    await h.until_delivered()
    h.alice.rotate(h.room)
    h.alice.hold_keys()
    early = await h.send(5, "without its key")
    await asyncio.sleep(2)
    expect(len(h.missing(early)) == 5, "messages were delivered without their key")
    held, h.alice.client.held = h.alice.client.held, None
    h.alice.rotate(h.room)
    return early, held


async def release(h: Harness, early: list[Sent], held: list):
    """Send the key at last, without which nothing was delivered."""
    expect(len(h.missing(early)) == 5, "messages were delivered without their key")
    h.alice.client.held = held
    expect(await h.alice.release_keys() > 0, "no key was held back")
    await h.until_delivered()


@case()
async def late_key(h: Harness):
    """Messages whose key arrives later, after a restart of the bridge; later messages do not wait."""
    early, held = await held_back(h)
    await h.until_delivered(60, await h.send(3, "with a key again"))
    await h.bridge.kill9()
    await h.bridge.start()
    await h.until_delivered(60, await h.send(2, "after the restart"))
    await release(h, early, held)
    return early


@case()
async def late_key_while_down(h: Harness):
    """Messages whose key is sent while the bridge is down."""
    await h.set_up()
    h.alice.hold_keys()
    early = await h.send(5, "without its key")
    await asyncio.sleep(2)
    expect(len(h.missing(early)) == 5, "messages were delivered without their key")
    await h.bridge.kill9()
    expect(await h.alice.release_keys() > 0, "no key was held back")
    await h.bridge.start()
    await h.until_delivered()


@case(slow=True)
async def late_by_an_hour(h: Harness):
    """Messages whose key arrives an hour later, and after a restart; later messages do not wait."""
    early, held = await held_back(h)
    for minute in range(60):
        await asyncio.sleep(60)
        await h.until_delivered(60, await h.send(1, f"after minute {minute}"))
        if minute == 30:
            await h.bridge.kill9()
            await h.bridge.start()
    began = time.monotonic()
    await release(h, early, held)
    print(f"     delivered {time.monotonic() - began:.1f} s after their key, which was an hour late")
    return early


@case()
async def webhook_down(h: Harness):
    """The webhook refuses connections, fails, drops connections, hangs; the bridge syncs and restarts."""
    await h.set_up()
    await h.send(1, "before")
    await h.until_delivered()
    await h.sink.close()
    await h.send(5, "connection refused")
    await asyncio.sleep(1)
    await h.sink.open()
    for mode in ("503", "drop", "hang"):
        h.sink.mode = mode
        seen = h.sink.refused
        await h.send(3, f"webhook mode {mode}")
        await until(lambda: h.sink.refused > seen, 90, f"a request in mode {mode}", detail=h.bridge.tail)
        expect(len(h.sink.first()) == 1, "the failing webhook has accepted a message")
    # While the webhook hangs, the bridge must still receive the key of a new session.
    h.alice.rotate(h.room)
    await h.send(3, "a new session meanwhile")
    await asyncio.sleep(1)
    await h.bridge.kill9()
    h.sink.mode = "500"
    await h.bridge.start()
    await h.send(3, "after the restart")
    await asyncio.sleep(2)
    h.sink.mode = "ok"
    await h.until_delivered(120)


@case()
async def synapse_down(h: Harness):
    """The homeserver is unavailable for a while, also when the bridge starts."""
    await h.set_up()
    await h.send(3, "before")
    await h.until_delivered()
    await h.synapse.stop()
    await asyncio.sleep(3)
    h.bridge.check_running()
    await h.synapse.start()
    await h.send(5, "after the first outage")
    await h.until_delivered(120)
    await h.bridge.kill9()
    await h.synapse.stop()
    await h.bridge.start()
    await asyncio.sleep(3)
    h.bridge.check_running()
    await h.synapse.start()
    await h.send(5, "after the second outage")
    await h.until_delivered(120)


@case()
async def postgres_down(h: Harness):
    """The database server is killed and restarted; the bridge recovers without a restart."""
    server = Postgres(h.directory / "postgres", h.logs / "postgres.log")
    try:
        await server.start()
        h.bridge.env["DATABASE_URL"] = server.url
        await h.set_up()
        await h.send(5, "before")
        await h.until_delivered()
        await server.kill9()
        await h.send(5, "without a database")
        await asyncio.sleep(3)
        h.bridge.check_running()
        await server.start()
        await h.send(5, "after")
        await h.until_delivered(120)
        expect(h.bridge.runs == 1, "the bridge was restarted")
    finally:
        await h.bridge.close()
        await server.close()


@case()
async def embedded_postgres_killed(h: Harness):
    """The bridge's embedded PostgreSQL is killed: the bridge recovers, or exits with an error and
    recovers when restarted."""
    h.bridge.env.pop("DATABASE_URL", None)
    await h.set_up()
    await h.send(3, "before")
    await h.until_delivered()
    pid = h.bridge.postgres_pid()
    expect(pid, "no embedded PostgreSQL in the data directory")
    os.kill(pid, signal.SIGKILL)
    sent = await h.send(5, "after")
    await until(
        lambda: not h.bridge.child.running or not h.missing(sent), 90,
        "the bridge to recover or to exit", detail=h.bridge.tail,
    )
    if not h.bridge.child.running:
        expect(h.bridge.child.code not in (0, -11, -6), f"the bridge exited with code {h.bridge.child.code}")
        await h.bridge.start()
    await h.until_delivered()
