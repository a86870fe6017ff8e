"""The deployment of examples/webhook_bridge/deploy: its database, roles, backup, and the order of a rolling update."""

import json
import secrets
import signal
import urllib.parse
import urllib.request
from contextlib import asynccontextmanager

from deploy_lib.database import Server
from deploy_lib.files import probes
from deploy_lib.queries import dashboard, resolved, used_metrics
from deploy_lib.report import DEPLOY, need, run

from ..bridge import Bridge
from ..harness import Harness, expect
from ..processes import Child, free_port, until
from ..sender import Sender, Sent
from ..synapse import SERVER_NAME
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
        need("age-keygen", "apt-get install age")
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
async def ghosts_of_a_bridge(h: Harness):
    """docs/bridge.md, "In front of mautrix-meta": ghosts send what the bridge's bot has encrypted, or plain text."""
    await h.bridge.start()
    metabot = await h.device(await h.user("metabot"), "device")
    ghost = await h.device(await h.user("meta_1"), "never used")
    other = await h.device(await h.user("person"), "phone")
    h.alice = ghost

    async def portal(encrypted: bool) -> str:
        room = await h.new_room(metabot, ghost.client.user_id, other.client.user_id, encrypted=encrypted)
        for guest in (ghost, other):
            path = f"/_matrix/client/v3/rooms/{room}/join"
            await h.synapse.request("POST", path, {}, token=guest.client.access_token)
        await metabot.sync()
        await other.sync()
        return room

    async def say(room: str, type: str, content: dict, speaker: Sender = ghost) -> str:
        path = f"/_matrix/client/v3/rooms/{room}/send/{type}/{secrets.token_hex(8)}"
        return (await h.synapse.request("PUT", path, content, token=speaker.client.access_token))["event_id"]

    async def encrypted(device: Sender, speaker: Sender, body: str) -> Sent:
        """A message in the name of `speaker` that `device` has encrypted."""
        content = {"msgtype": "m.text", "body": body}
        event = await say(room, *device.client.encrypt(room, "m.room.message", content), speaker)
        return Sent(event, room, speaker.client.user_id, body, content, None, 0)

    async def until_refused(count: int):
        async def is_counted():
            wanted = f'webhook_bridge_undecryptable_total{{reason="mismatched_sender"}} {count}\n'
            return wanted in await h.bridge.metrics()

        await until(is_counted, 60, "a message under another user's name to be refused", 0.3, h.bridge.tail)

    room = await portal(encrypted=True)
    await h.send(1, "of the bridge's bot itself", metabot, room)
    await h.send(1, "of a person", other, room)
    await h.until_delivered()
    await encrypted(metabot, ghost, "without the setting")
    await until_refused(1)
    expect(len(h.sink.first()) == 2, "a message under another user's name was delivered")
    await h.bridge.child.stop()

    await h.bridge.start(BRIDGE_TRUSTED_BRIDGES=f"{metabot.client.user_id}=@meta_*:{SERVER_NAME}")
    await h.bridge.ready()
    h.sent.append(await encrypted(metabot, ghost, "from Instagram"))
    await encrypted(other, ghost, "a person's device under the ghost's name")
    await encrypted(metabot, other, "the bot's device under a person's name")
    await h.send(1, "of a person, still", other, room)
    await h.until_delivered()
    await until_refused(2)
    expect(len(h.sink.first()) == 4, "a message under another user's name was delivered")
    document = h.sink.first()[h.sent[-2].event_id].message
    expect(document["sent_by_device_of"] == metabot.client.user_id, f"the document is {document}")
    expect(document["verification"] == "unsigned_device", f"the document is {document}")

    room = await portal(encrypted=False)
    text = {"msgtype": "m.text", "body": "from Instagram, in the clear"}
    event = await say(room, "m.room.message", text)
    h.sent.append(Sent(event, room, ghost.client.user_id, text["body"], text, None, 0))
    await h.until_delivered()
    expect(h.sink.first()[event].message["encrypted"] is False, "the message is said to be encrypted")


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


@case()
async def dashboard_and_alerts(h: Harness):
    """A real Prometheus scrapes an owner and a standby: each panel has data, and no alert is pending or firing."""
    standby = Bridge(h.synapse, h.sink, h.bot, h.passwords[h.bot], h.directory / "second", h.logs / "second")
    async with deployed(h, standby):
        await h.set_up()
        await standby.start()
        await until_standby(standby)
        prometheus = await start_prometheus(h, [h.bridge.listen, standby.listen])
        try:
            await h.send(3, "to be counted")
            await h.until_delivered()

            def queried() -> dict[str, list]:
                found = {}
                for panel in dashboard()["panels"]:
                    for target in panel["targets"]:
                        query = resolved(target["expr"], rate_interval="20s")
                        found[target["expr"]] = prometheus("query", query=query)["result"]
                return found

            def empty() -> set[str]:
                return {query for query, result in queried().items() if not result}

            await until(lambda: not empty(), 40, "data in each panel", 1, lambda: "\n".join(empty()))
            firing = prometheus("alerts")["alerts"]
            expect(not firing, f"alerts: {firing}")
            expect(len(prometheus("rules")["groups"][0]["rules"]) > 5, "the rules are not loaded")
        finally:
            await prometheus.child.stop()


async def start_prometheus(h: Harness, ports: list[int]):
    """A function that asks its API."""
    directory, port = h.directory / "prometheus", free_port()
    directory.mkdir()
    (directory / "prometheus.yml").write_text(json.dumps({
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(DEPLOY / "prometheus-rules.yaml")],
        "scrape_configs": [
            {"job_name": "bot", "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]},
        ],
    }))
    child = Child("Prometheus", h.logs / "prometheus.log")
    await child.start(
        need("prometheus", "apt-get install prometheus"), f"--config.file={directory}/prometheus.yml",
        f"--storage.tsdb.path={directory}/data", f"--web.listen-address=127.0.0.1:{port}", cwd=directory,
    )

    def ask(what: str, **parameters: str) -> dict:
        url = f"http://127.0.0.1:{port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def is_up() -> bool:
        try:
            return len(ask("query", query="up == 1")["result"]) == len(ports)
        except OSError:
            return False

    await until(is_up, 30, "Prometheus to scrape the replicas", 0.5, child.tail)
    ask.child = child
    return ask


async def exports_metrics(bridge: Bridge):
    """Whether it exports what the alert rules and the dashboard name."""
    text = await bridge.metrics()
    missing = {name for name in used_metrics() if f"\n{name}" not in "\n" + text}
    expect(not missing, f"not exported: {sorted(missing)}")


async def is_200(bridge: Bridge, path: str) -> bool:
    bridge.check_running()
    return await bridge.status(path) == 200


async def is_owner(bridges: list[Bridge]) -> bool:
    """Whether exactly one is ready, and the others wait."""
    return sorted([await bridge.status("/readyz") for bridge in bridges]) == [200, 503]
