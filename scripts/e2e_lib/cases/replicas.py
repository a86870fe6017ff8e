"""Several processes for one bot: one is active, and a database that was set back is noticed."""

import shutil
import signal
import subprocess
from contextlib import asynccontextmanager

from ..bridge import Bridge
from ..postgres import Postgres
from ..processes import until
from ..world import World, expect
from . import case

SUPERSEDED, IN_USE, ROLLED_BACK = 7, 8, 9


@asynccontextmanager
async def shared_database(w: World):
    """A server of its own for the bot, and a second replica, not yet started."""
    server = Postgres(w.directory / "postgres", w.logs / "postgres.log")
    second = Bridge(
        w.synapse, w.sink, w.bot, w.passwords[w.bot], w.directory / "second", w.logs / "second"
    )
    first = w.bridge
    try:
        await server.start()
        for bridge in (first, second):
            bridge.env["DATABASE_URL"] = server.url
        yield server, second
    finally:
        for bridge in (first, second):
            await bridge.close()
        await server.close()


async def waits(bridge: Bridge):
    """Until the replica says that it is a standby."""

    async def says_so():
        bridge.alive()
        status, text = await bridge._get("/readyz")
        return status == 503 and "standby" in text

    await until(says_so, 30, "the standby to wait", detail=bridge.tail)
    expect(await bridge.status("/healthz") == 200, "a standby does not count as alive")


async def ended(bridge: Bridge, code: int, *words: str):
    got = await bridge.child.wait(60)
    expect(got == code, f"it ended with code {got} instead of {code}\n{bridge.tail()}")
    for word in words:
        expect(word in bridge.child.output(), f"no word of {word}\n{bridge.tail()}")


@case()
async def standby(w: World):
    """The standby waits, can be stopped, and takes over when the active one is killed or stopped."""
    async with shared_database(w) as (_, second):
        await w.up()
        await w.send(3, "before")
        await w.arrived()
        await second.start()
        await waits(second)
        second.child.send(signal.SIGTERM)
        await ended(second, 0)
        await second.start()
        await waits(second)
        await w.bridge.kill9()
        w.check_outputs()
        first, w.bridge = w.bridge, second
        await w.send(3, "after the active one was killed")
        await w.arrived(20)
        await first.start()
        await waits(first)
        w.bridge.child.send(signal.SIGTERM)
        await ended(second, 0)
        w.check_outputs()
        w.bridge = first
        await w.send(3, "after the active one was stopped")
        await w.arrived(20)
        expect(len(await w.synapse.devices(w.bot)) == 1, "the replicas have several devices")


@case()
async def superseded(w: World):
    """Whoever loses the account ends with a code of its own, and does not come back by itself."""
    async with shared_database(w) as (_, second):
        await w.up()
        await w.send(3, "before")
        await w.arrived()
        await second.start(BRIDGE_TAKEOVER="immediate")
        await ended(w.bridge, SUPERSEDED, "taken over by webhook_bridge")
        await w.bridge.start("--takeover", "refuse")
        await ended(w.bridge, IN_USE, "in use by webhook_bridge")
        w.check_outputs()
        w.bridge = second
        await w.send(3, "after the takeover")
        await w.arrived()


@case()
async def set_back(w: World):
    """A database restored from an old backup: refused, and a new device goes on."""
    async with shared_database(w) as (server, _):
        await w.up()
        await w.send(3, "before the backup")
        await w.arrived()
        await w.bridge.child.stop()
        await server.close()
        backup = w.directory / "backup"
        subprocess.run(["cp", "-a", server.directory, backup], check=True)
        await server.start()
        await w.bridge.start()
        await w.send(3, "after the backup")
        await w.arrived()
        await w.bridge.child.stop()
        await server.close()
        shutil.rmtree(server.directory)
        backup.rename(server.directory)
        await server.start()
        for _ in range(2):
            await w.bridge.start()
            await ended(w.bridge, ROLLED_BACK, "STORE_ACCOUNT")
        await w.bridge.start(STORE_ACCOUNT="begun anew")
        await until(
            lambda: "first sync done" in w.bridge.child.output(), 60, "the first sync",
            detail=w.bridge.tail,
        )
        await w.alice.sync()
        w.alice.rotate(w.room)
        await w.send(3, "to the new device")
        await w.arrived()
