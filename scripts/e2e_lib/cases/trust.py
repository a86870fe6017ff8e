"""Cross-signing: senders that share keys only with devices that their owner has signed."""

import asyncio
import os
import re
import signal
import time
from pathlib import Path

from ..harness import Failure, Harness, expect
from ..processes import Child, Timeout, until
from ..sender import Sent
from . import case


async def metric(h: Harness, name: str) -> float | None:
    """The value of a metric, with its labels in the name."""
    found = re.search(rf"^webhook_bridge_{re.escape(name)} (\S+)$", await h.bridge.metrics(), re.M)
    return float(found[1]) if found else None


async def until_metric(h: Harness, name: str, wanted):
    async def reached():
        h.bridge.check_running()
        value = await metric(h, name)
        return value is not None and wanted(value)

    await until(reached, 60, f"the metric {name}", 0.1, h.bridge.tail)


async def until_signed(h: Harness):
    await until_metric(h, "device_cross_signed", lambda value: value == 1)


async def until_logged(h: Harness, words: str):
    await until(lambda: words in h.bridge.child.output(), 60, f"{words!r} in the log", detail=h.bridge.tail)


async def joined_user(h: Harness, name: str, room: str) -> str:
    """Another user in Alice's room, without a device."""
    user = await h.user(name)
    await h.alice.client.room_invite(room, user)
    login = await h.synapse.login(user, h.passwords[user])
    await h.synapse.request("POST", f"/_matrix/client/v3/join/{room}", {}, login["access_token"])
    await h.synapse.logout(login["access_token"])
    return user


async def strictly_sent(h: Harness, user: str, room: str, *bodies: str) -> list[Sent]:
    """Messages of a new device that shares its keys only with signed devices."""
    env = {
        **os.environ, "MATRIX_HOMESERVER": h.synapse.url, "MATRIX_USER": user,
        "MATRIX_PASSWORD": h.passwords[user], "ROOM": room,
    }
    program = Path(os.environ["E2E_EXAMPLES"]) / "strict_sender"
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(program, *bodies, env=env, stdout=pipe, stderr=pipe)
    out, error = await process.communicate()
    expect(process.returncode == 0, f"the strict sender failed: {error.decode()}")
    content = lambda body: {"msgtype": "m.text", "body": body}
    return [
        Sent(event_id, room, user, body, content(body), None, time.monotonic())
        for event_id, body in zip(out.decode().split(), bodies, strict=True)
    ]


async def master_key(h: Harness) -> dict:
    query = {"device_keys": {h.bot: []}}
    token = h.alice.client.access_token
    answer = await h.synapse.request("POST", "/_matrix/client/v3/keys/query", query, token)
    return answer["master_keys"].get(h.bot, {})


@case()
async def signed_devices_only(h: Harness):
    """A sender that shares keys only with signed devices reaches the bridge, also after a kill -9."""
    await h.set_up()
    await until_signed(h)
    bob = await joined_user(h, "bob", h.room)
    h.sent += await strictly_sent(h, bob, h.room, "to a signed device", "another one")
    await h.until_delivered()
    for delivery in h.sink.delivered:
        verification = delivery.message["verification"]
        expect(verification == "unverified_identity", f"the sender is reported as {verification}")
    identity = await master_key(h)
    await h.bridge.kill9()
    h.sent += await strictly_sent(h, bob, h.room, "while it is down, from a new device")
    await h.bridge.start()
    await h.until_delivered()
    await until_signed(h)
    expect(await master_key(h) == identity, "the restart has replaced the bot's identity")


@case()
async def signed_after_reset(h: Harness):
    """The bot's identity is elsewhere: it is replaced, with the password, only if that is asked for."""
    await h.set_up()
    await until_signed(h)
    identity = await master_key(h)
    await h.bridge.child.stop()
    await h.bridge.start(STORE_ACCOUNT="another")
    await until_logged(h, "BRIDGE_CROSS_SIGNING=reset")
    expect(await master_key(h) == identity, "the bot's identity was replaced without being asked for")
    await h.bridge.child.stop()
    await h.bridge.start(STORE_ACCOUNT="another", BRIDGE_CROSS_SIGNING="reset")
    await until_signed(h)
    expect(await master_key(h) != identity, "the bot's identity was not replaced")
    bob = await joined_user(h, "bob", h.room)
    h.sent += await strictly_sent(h, bob, h.room, "to the new device")
    await h.until_delivered()


@case()
async def withheld_key(h: Harness):
    """An unsigned device gets no keys from a strict sender: the reason is logged and counted."""
    await h.set_up(BRIDGE_CROSS_SIGNING="off")
    bob = await joined_user(h, "bob", h.room)
    await strictly_sent(h, bob, h.room, "for signed devices only")
    await until_metric(h, "messages_waiting_for_key", lambda value: value == 1)
    await until_metric(h, 'keys_withheld_total{code="m.unverified"}', lambda value: value == 1)
    await until_logged(h, "not signed by their owner (m.unverified)")
    await h.send(2, "for any device")
    await h.until_delivered()


@case()
async def device_keys_gone(h: Harness):
    """Another program has replaced the keys of the bot's device: the bridge names that at its start."""
    login = await h.synapse.login(h.bot, h.passwords[h.bot])
    token = {"MATRIX_PASSWORD": None, "MATRIX_ACCESS_TOKEN": login["access_token"]}
    await h.set_up(**token)
    await h.send(1, "before")
    await h.until_delivered()
    await h.bridge.child.stop()
    other = await h.device(await h.user("other"), "phone")
    olm = other.client.olm
    olm.user_id, olm.device_id, olm.account.shared = h.bot, login["device_id"], False
    keys = {"device_keys": olm.share_keys()["device_keys"]}
    await h.synapse.request("POST", "/_matrix/client/v3/keys/upload", keys, login["access_token"])
    await h.bridge.start(**token)
    code = await h.bridge.child.wait(60)
    expect(code == 4, f"the bridge exited with code {code}\n{h.bridge.tail()}")
    await until_logged(h, f"the homeserver has other keys of device {login['device_id']}")


async def backup_of(h: Harness) -> dict:
    """The bot's key backup, with the number of its keys; empty if there is none."""
    login = await h.synapse.login(h.bot, h.passwords[h.bot])
    try:
        return await h.synapse.request("GET", "/_matrix/client/v3/room_keys/version", token=login["access_token"])
    except RuntimeError:
        return {}
    finally:
        await h.synapse.logout(login["access_token"])


async def has_backed_up(h: Harness, count: int) -> bool:
    h.bridge.check_running()
    return (await backup_of(h)).get("count", 0) >= count


@case()
async def key_backup(h: Harness):
    """Room keys are backed up, and a device that a sender excludes takes the missing one from the backup."""
    await h.set_up(BRIDGE_KEY_BACKUP="true", STORE_ACCOUNT="second")
    await h.send(1, "to the second device")
    await h.until_delivered()
    await until(lambda: has_backed_up(h, 1), 60, "the first key in the backup", 0.5, h.bridge.tail)
    (key,) = re.findall(r"shown only now: (\S+)", h.bridge.outputs())
    await h.bridge.child.stop()
    (second,) = await h.synapse.device_keys(h.bot, h.alice.client.access_token)
    # Another device of the bot receives the next key, and does not get the message delivered.
    h.sink.mode = "503"
    await h.bridge.start(STORE_ACCOUNT="first", BRIDGE_RECOVERY_KEY=key)
    await until_metric(h, "device_keys_uploaded", lambda value: value == 1)
    await until_metric(h, "key_backup_enabled", lambda value: value == 1)
    await h.alice.sync()
    h.alice.client.blacklist_device(h.alice.client.device_store[h.bot][second])
    h.alice.rotate(h.room)
    await h.send(2, "not to the second device")
    await until(lambda: has_backed_up(h, 2), 60, "the second key in the backup", 0.5, h.bridge.tail)
    await h.bridge.child.stop()
    h.sink.mode = "ok"
    await h.bridge.start(STORE_ACCOUNT="second", BRIDGE_KEY_BACKUP="true")
    await h.until_delivered()
    await until_logged(h, "a room key was fetched from the key backup")
    expect(h.bridge.outputs().count("shown only now") == 1, "the recovery key was printed again")
    verifications = {delivery.message["verification"] for delivery in h.sink.delivered[1:]}
    expect(verifications == {"insecure_source"}, f"verification is {verifications}")


async def other_client(h: Harness, **env: str) -> tuple[Child, str]:
    """Another client of the bot's user sets recovery up. Returns it and the recovery key."""
    env |= {
        **os.environ, "MATRIX_HOMESERVER": h.synapse.url, "MATRIX_USER": h.bot, "MATRIX_PASSWORD": h.passwords[h.bot],
    }
    child = Child("the other client", h.logs / "other_client.log")
    await child.start(Path(os.environ["E2E_EXAMPLES"]) / "recovery", env=env, stdout=asyncio.subprocess.PIPE)
    key = (await child.process.stdout.readline()).decode().strip()
    expect(key, f"the other client failed\n{child.tail()}")
    return child, key


@case()
async def secret_storage(h: Harness):
    """Another client has set recovery up for the bot's user: its recovery key opens the backup, and signs the device."""
    other, key = await other_client(h)
    await other.wait(60)
    before = await backup_of(h)
    await h.set_up(BRIDGE_RECOVERY_KEY=key)
    identity = await master_key(h)
    await until_signed(h)
    await until_metric(h, "key_backup_enabled", lambda value: value == 1)
    bob = await joined_user(h, "bob", h.room)
    h.sent += await strictly_sent(h, bob, h.room, "to a signed device")
    await h.until_delivered()
    await until(lambda: has_backed_up(h, 1), 60, "the key in the backup", 0.5, h.bridge.tail)
    expect((await backup_of(h))["version"] == before["version"], "the other client's backup was replaced")
    expect(await master_key(h) == identity, "the other client's identity was replaced")
    expect(key not in h.bridge.outputs(), "the recovery key is in the output")
    await h.bridge.child.stop()
    # What is needed of the storage is in the database.
    await h.bridge.start(BRIDGE_KEY_BACKUP="true")
    h.alice.rotate(h.room)
    await h.send(1, "with a new key")
    await h.until_delivered()
    await until(lambda: has_backed_up(h, 2), 60, "the second key in the backup", 0.5, h.bridge.tail)


@case()
async def forwarded_key(h: Harness):
    """A sender excludes the bridge's device: another verified device of the bot's user forwards the key.

    Also if it was away. Its next sync brings the request together with the key, which makes it refuse: it is asked
    again.
    """
    other, key = await other_client(h, STAY="1")
    try:
        login = await h.synapse.login(h.bot, h.passwords[h.bot])
        (device,) = await h.synapse.device_keys(h.bot, login["access_token"])
        await h.synapse.logout(login["access_token"])
        await h.set_up(BRIDGE_RECOVERY_KEY=key)
        await until_signed(h)
        await h.bridge.child.stop()
        # Without the key backup.
        await h.bridge.start()
        await h.alice.sync()
        devices = h.alice.client.device_store[h.bot]
        (bridge,) = set(devices.keys()) - {device}
        h.alice.client.blacklist_device(devices[bridge])
        h.alice.rotate(h.room)
        await h.send(3, "not to the bridge's device")
        await h.until_delivered()
        other.send(signal.SIGSTOP)
        # The answer to its long poll, so that what follows waits for the next one.
        topic = f"/_matrix/client/v3/rooms/{h.room}/state/m.room.topic"
        await h.synapse.request("PUT", topic, {"topic": "news"}, h.alice.client.access_token)
        h.alice.rotate(h.room)
        await h.send(1, "while the other device is away")
        asked = lambda: "m.room_key_request" in h.synapse.undelivered(h.bot, device)
        await until(asked, 60, "the request for the key", detail=h.bridge.tail)
        other.send(signal.SIGCONT)
        await h.until_delivered()
        verifications = {delivery.message["verification"] for delivery in h.sink.delivered}
        expect(verifications == {"insecure_source"}, f"verification is {verifications}")
    except (Failure, Timeout) as failure:
        raise Failure(f"{failure}\n{other.tail()}") from None
    finally:
        await other.kill9()
