"""Several processes for one bot: standby, takeover, and rollback detection."""

import asyncio
import shutil
import signal
import subprocess
from contextlib import asynccontextmanager

from ..bridge import Bridge
from ..harness import Harness, expect
from ..postgres import Postgres
from ..processes import until
from . import case

SUPERSEDED, IN_USE, ROLLED_BACK = 7, 8, 9


@asynccontextmanager
async def shared_database(h: Harness):
    """A separate database server for the bot, and a second replica, not started."""
    server = Postgres(h.directory / "postgres", h.logs / "postgres.log")
    second = Bridge(
        h.synapse, h.sink, h.bot, h.passwords[h.bot], h.directory / "second", h.logs / "second"
    )
    first = h.bridge
    try:
        await server.start()
        for bridge in (first, second):
            bridge.env["DATABASE_URL"] = server.url
        yield server, second
    finally:
        for bridge in (first, second):
            await bridge.close()
        await server.close()


async def until_standby(bridge: Bridge):
    """Wait until the replica reports that it is a standby."""

    async def is_standby():
        bridge.check_running()
        status, text = await bridge._get("/readyz")
        return status == 503 and "standby" in text

    await until(is_standby, 30, "the standby to wait", detail=bridge.tail)
    expect(await bridge.status("/healthz") == 200, "/healthz of the standby does not respond with 200")


async def expect_exit(bridge: Bridge, code: int, *words: str):
    got = await bridge.child.wait(60)
    expect(got == code, f"the bridge exited with code {got} instead of {code}\n{bridge.tail()}")
    for word in words:
        expect(word in bridge.child.output(), f"{word!r} is not in the output\n{bridge.tail()}")


@case()
async def standby(h: Harness):
    """The standby waits, can be stopped, and takes over when the active bridge is killed or stopped."""
    async with shared_database(h) as (_, second):
        await h.set_up()
        await h.send(3, "before")
        await h.until_delivered()
        await second.start()
        await until_standby(second)
        second.child.send(signal.SIGTERM)
        await expect_exit(second, 0)
        await second.start()
        await until_standby(second)
        await h.bridge.kill9()
        h.check_outputs()
        first, h.bridge = h.bridge, second
        await h.send(3, "after the active one was killed")
        await h.until_delivered(20)
        await first.start()
        await until_standby(first)
        h.bridge.child.send(signal.SIGTERM)
        await expect_exit(second, 0)
        h.check_outputs()
        h.bridge = first
        await h.send(3, "after the active one was stopped")
        await h.until_delivered(20)
        expect(len(await h.synapse.devices(h.bot)) == 1, "the replicas have several devices")


@case()
async def superseded(h: Harness):
    """A superseded bridge exits with a specific code and does not take the account back."""
    async with shared_database(h) as (_, second):
        await h.set_up()
        await h.send(3, "before")
        await h.until_delivered()
        await second.start(BRIDGE_TAKEOVER="immediate")
        await expect_exit(h.bridge, SUPERSEDED, "taken over by webhook_bridge")
        await h.bridge.start("--takeover", "refuse")
        await expect_exit(h.bridge, IN_USE, "in use by webhook_bridge")
        h.check_outputs()
        h.bridge = second
        await h.send(3, "after the takeover")
        await h.until_delivered()


@case()
async def rolled_back(h: Harness):
    """A database restored from an old backup is refused; a new device works."""
    async with shared_database(h) as (server, _):
        await h.set_up()
        await h.send(3, "before the backup")
        await h.until_delivered()
        await h.bridge.child.stop()
        await server.close()
        backup = h.directory / "backup"
        await asyncio.to_thread(subprocess.run, ["cp", "-a", server.directory, backup], check=True)
        await server.start()
        await h.bridge.start()
        await h.send(3, "after the backup")
        await h.until_delivered()
        await h.bridge.child.stop()
        await server.close()
        shutil.rmtree(server.directory)
        backup.rename(server.directory)
        await server.start()
        for _ in range(2):
            await h.bridge.start()
            await expect_exit(h.bridge, ROLLED_BACK, "STORE_ACCOUNT")
        await h.bridge.start(STORE_ACCOUNT="new device")
        await until(
            lambda: "first sync done" in h.bridge.child.output(), 60, "the first sync",
            detail=h.bridge.tail,
        )
        await h.alice.sync()
        h.alice.rotate(h.room)
        await h.send(3, "to the new device")
        await h.until_delivered()
