"""Something the bridge needs is away for a while, or comes late."""

import asyncio
import os
import signal

from ..postgres import Postgres
from ..processes import until
from ..world import World, expect
from . import case


@case()
async def gap(w: World):
    """130 messages in one room and 15 in another during one outage, more than a sync returns;
    and the bridge dies once more while it catches up."""
    await w.up()
    other = await w.new_room(w.alice)
    await w.send(1, "before")
    await w.send(1, "before", room=other)
    await w.arrived()
    await w.bridge.kill9()
    await w.send(130, "in the gap")
    await w.send(15, "in the small gap", room=other)
    await w.bridge.start()
    await until(lambda: len(w.sink.first()) >= 30, 90, "the first 30 messages", detail=w.bridge.tail)
    await w.bridge.kill9()
    await w.bridge.start()
    await w.arrived(120)


@case()
async def late_key(w: World):
    """Messages whose key comes later, after a restart of the bridge; later ones do not wait."""
    await w.up()
    await w.send(2, "with its key")
    await w.arrived()
    w.alice.rotate(w.room)
    w.alice.hold_keys()
    early = await w.send(5, "without its key")
    await asyncio.sleep(2)
    expect(len(w.missing(early)) == 5, "delivered without a key?")
    held, w.alice.client.held = w.alice.client.held, None
    w.alice.rotate(w.room)
    await w.arrived(60, await w.send(3, "with a key again"))
    await w.bridge.kill9()
    await w.bridge.start()
    await w.arrived(60, await w.send(2, "after the restart"))
    expect(len(w.missing(early)) == 5, "delivered without a key?")
    w.alice.client.held = held
    expect(await w.alice.release_keys() > 0, "no key was held back")
    await w.arrived()
    return early


@case()
async def late_key_while_dead(w: World):
    """Messages whose key comes while the bridge is dead."""
    await w.up()
    w.alice.hold_keys()
    early = await w.send(5, "without its key")
    await asyncio.sleep(2)
    expect(len(w.missing(early)) == 5, "delivered without a key?")
    await w.bridge.kill9()
    expect(await w.alice.release_keys() > 0, "no key was held back")
    await w.bridge.start()
    await w.arrived()


@case()
async def webhook_down(w: World):
    """The webhook refuses, fails, hangs up, hangs; meanwhile the bridge restarts and syncs."""
    await w.up()
    await w.send(1, "before")
    await w.arrived()
    await w.sink.shut()
    await w.send(5, "nobody listens")
    await asyncio.sleep(1)
    await w.sink.open()
    for mode in ("503", "drop", "hang"):
        w.sink.mode = mode
        seen = w.sink.refused
        await w.send(3, f"the webhook is at {mode}")
        await until(lambda: w.sink.refused > seen, 90, f"a request at {mode}", detail=w.bridge.tail)
        expect(len(w.sink.first()) == 1, "accepted while failing?")
    # With the webhook stuck, a new session's key must still come in, for the old one to be gone.
    w.alice.rotate(w.room)
    await w.send(3, "a new session meanwhile")
    await asyncio.sleep(1)
    await w.bridge.kill9()
    w.sink.mode = "500"
    await w.bridge.start()
    await w.send(3, "after the restart")
    await asyncio.sleep(2)
    w.sink.mode = "ok"
    await w.arrived(120)


@case()
async def synapse_down(w: World):
    """The homeserver is away for a while, also when the bridge starts."""
    await w.up()
    await w.send(3, "before")
    await w.arrived()
    await w.synapse.stop()
    await asyncio.sleep(3)
    w.bridge.alive()
    await w.synapse.start()
    await w.send(5, "after the first outage")
    await w.arrived(120)
    await w.bridge.kill9()
    await w.synapse.stop()
    await w.bridge.start()
    await asyncio.sleep(3)
    w.bridge.alive()
    await w.synapse.start()
    await w.send(5, "after the second outage")
    await w.arrived(120)


@case()
async def postgres_down(w: World):
    """The database server is killed and comes back; the bridge goes on by itself."""
    server = Postgres(w.directory / "postgres", w.logs / "postgres.log")
    try:
        await server.start()
        w.bridge.env["DATABASE_URL"] = server.url
        await w.up()
        await w.send(5, "before")
        await w.arrived()
        await server.kill9()
        await w.send(5, "without a database")
        await asyncio.sleep(3)
        w.bridge.alive()
        await server.start()
        await w.send(5, "after")
        await w.arrived(120)
        expect(w.bridge.runs == 1, "it was to go on without a restart")
    finally:
        await w.bridge.close()
        await server.close()


@case()
async def private_postgres_killed(w: World):
    """The bridge's private PostgreSQL is killed: the bridge recovers, or ends with a failure and
    recovers when started again."""
    w.bridge.env.pop("DATABASE_URL", None)
    await w.up()
    await w.send(3, "before")
    await w.arrived()
    pid = w.bridge.postgres_pid()
    expect(pid, "no private PostgreSQL in the data directory")
    os.kill(pid, signal.SIGKILL)
    sent = await w.send(5, "after")
    await until(
        lambda: not w.bridge.child.running or not w.missing(sent), 90,
        "the bridge to recover or to end", detail=w.bridge.tail,
    )
    if not w.bridge.child.running:
        expect(w.bridge.child.code not in (0, -11, -6), f"it ended with code {w.bridge.child.code}")
        await w.bridge.start()
    await w.arrived()
