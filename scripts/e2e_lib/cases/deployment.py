"""The deployment of examples/webhook_bridge/deploy: its database, roles, backup, and the order of a rolling update."""

import signal
from contextlib import asynccontextmanager

from deploy_lib.database import Server
from deploy_lib.files import probes
from deploy_lib.queries import used_metrics
from deploy_lib.report import DEPLOY, run

from ..bridge import Bridge
from ..harness import Harness, expect
from ..processes import until
from . import case
from .replicas import ROLLED_BACK, expect_exit, until_standby


@asynccontextmanager
async def deployed(h: Harness, *replicas: Bridge):
    """A server that init-db.sql has prepared and the owner has migrated. Bridges log in as the bot, over TLS."""
    h.directory.mkdir(parents=True, exist_ok=True)
    server = Server(h.directory)
    try:
        await server.start()
        server.init()
        for bridge in (h.bridge, *replicas):
            for name in ("DATABASE_URL", "BRIDGE_EMBEDDED_POSTGRES"):
                bridge.env.pop(name, None)
            bridge.env |= {"DATABASE_URL_FILE": server.url_file("bot"), "BRIDGE_RUN_MIGRATIONS": "false"}
        await h.bridge.start("--migrate-only", DATABASE_URL_FILE=server.url_file("owner"))
        await expect_exit(h.bridge, 0)
        server.init()
        yield server
    finally:
        for bridge in (h.bridge, *replicas):
            await bridge.close()
        await server.close()


@case()
async def backup_and_restore(h: Harness):
    """Dump, encrypt, lose the database, restore: the bridge refuses the old keys, and recovers with a new device."""
    async with deployed(h) as server:
        await h.set_up()
        await h.send(3, "before the backup")
        await h.until_delivered()
        identity = h.directory / "identity.txt"
        run("age-keygen", "-o", identity)
        env = server.role("backup") | {
            "BACKUP_DIR": str(h.directory / "backups"), "BACKUP_RECIPIENT": run("age-keygen", "-y", identity).strip(),
        }
        run("bash", DEPLOY / "backup.sh", env=env)
        await h.send(3, "after the backup")
        await h.until_delivered()
        await exports_metrics(h.bridge)
        await h.bridge.child.stop()

        run("dropdb", "--force", "bridge", env=server.superuser)
        server.init()
        (backup,) = (h.directory / "backups").iterdir()
        run("bash", DEPLOY / "restore.sh", backup, env=server.superuser, input=identity.read_text())

        await h.bridge.start()
        await expect_exit(h.bridge, ROLLED_BACK, "STORE_ACCOUNT")
        (old,) = await h.synapse.devices(h.bot)
        await h.bridge.start(STORE_ACCOUNT="after the restore")
        await h.bridge.ready()
        await h.synapse.delete_device(h.bot, old)
        await h.alice.sync()
        h.alice.rotate(h.room)
        await h.send(3, "to the new device")
        await h.until_delivered()


@case()
async def rolling_update(h: Harness):
    """Two replicas through a rolling update as kubernetes.yaml has it: nothing is lost, one device, one owner."""
    others = [
        Bridge(h.synapse, h.sink, h.bot, h.passwords[h.bot], h.directory / name, h.logs / name)
        for name in ("second", "third", "fourth")
    ]
    async with deployed(h, *others):
        old, new = [h.bridge, others[0]], others[1:]
        await h.set_up()
        await others[0].start()
        await until_standby(others[0])
        await h.send(3, "before the update")
        await h.until_delivered()
        for bridge in new:
            # maxSurge 1, maxUnavailable 0: one new pod, and when it is ready, one old pod less.
            await bridge.start()
            for path in probes().values():
                await until(lambda: is_200(bridge, path), 30, f"{path} of a new replica", detail=bridge.tail)
            leaving = old.pop()
            leaving.child.send(signal.SIGTERM)
            await expect_exit(leaving, 0)
            await h.send(3, f"after {len(old)} old replicas are left")
        h.check_outputs()
        await until(lambda: is_owner(new), 30, "one owner", detail=new[0].tail)
        # The harness observes a running bridge.
        h.bridge = new[0]
        await h.until_delivered(30)
        expect(len(await h.synapse.devices(h.bot)) == 1, "the replicas have several devices")


async def exports_metrics(bridge: Bridge):
    """Whether it exports what the alert rules and the dashboard name. A counter with labels appears with its first event."""
    text = await bridge.metrics()
    missing = {name for name in used_metrics() if f"\n{name}" not in "\n" + text}
    expect(missing <= {"webhook_bridge_undecryptable_total"}, f"not exported: {sorted(missing)}")


async def is_200(bridge: Bridge, path: str) -> bool:
    bridge.check_running()
    return await bridge.status(path) == 200


async def is_owner(bridges: list[Bridge]) -> bool:
    """Whether exactly one is ready, and the others wait."""
    return sorted([await bridge.status("/readyz") for bridge in bridges]) == [200, 503]
