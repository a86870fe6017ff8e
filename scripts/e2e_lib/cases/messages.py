"""Messages while nothing is wrong but the bridge's own life."""

import asyncio
import random
import time

from ..world import World, expect
from . import case


@case()
async def live(w: World):
    """20 messages while the bridge runs."""
    await w.up()
    await w.send(20, "live")
    await w.arrived()
    expect(w.sink.duplicates == 0, f"{w.sink.duplicates} came twice, with no crash to excuse it")


@case()
async def killed(w: World):
    """20 messages on the same Megolm session while the bridge is dead by kill -9."""
    await w.up()
    before = await w.send(1, "before the kill")
    await w.arrived()
    await w.bridge.kill9()
    during = await w.send(20, "while it was dead")
    sessions = {message.session_id for message in before + during}
    expect(len(sessions) == 1, "the sender was to stay on one Megolm session")
    await w.bridge.start()
    await w.arrived()


@case()
async def rotated(w: World):
    """20 messages after the sender rotated its Megolm session."""
    await w.up()
    before = await w.send(2, "old session")
    await w.arrived()
    w.alice.rotate(w.room)
    after = await w.send(20, "new session")
    expect(before[0].session_id != after[0].session_id, "the sender was to rotate")
    await w.arrived()


@case()
async def rotated_while_dead(w: World):
    """20 messages on a Megolm session whose key was sent while the bridge was dead."""
    await w.up()
    await w.send(2, "old session")
    await w.arrived()
    await w.bridge.kill9()
    w.alice.rotate(w.room)
    await w.send(20, "unseen session")
    await w.bridge.start()
    await w.arrived()


@case()
async def new_device(w: World):
    """20 messages from a new device of the sender."""
    await w.up()
    await w.send(2, "phone")
    await w.arrived()
    tablet = await w.device(w.alice_id, "tablet")
    await w.send(20, "tablet", tablet)
    await w.arrived()


@case(webhook_token="a token for the webhook")
async def bearer_token(w: World):
    """The webhook's token goes along with every request."""
    await w.up()
    await w.send(3, "with a token")
    await w.arrived()


@case()
async def two_rooms(w: World):
    """Two senders in two rooms at the same time, each room in its order."""
    await w.up()
    bob_id = await w.user("bob")
    bob = await w.device(bob_id, "laptop")
    other = await w.new_room(bob)
    await asyncio.gather(w.send(15, "alice"), w.send(15, "bob", bob, other))
    await w.arrived()


@case()
async def kinds(w: World):
    """Bodies that trip databases and JSON, an edit, a file."""
    await w.up()
    bodies = ["", "NUL \0 inside", "שלום → 你好 👩‍👩‍👧", "two\nlines\r\n", '"quotes" \\u0000 \\', "x" * 40000]
    contents = [{"msgtype": "m.text", "body": body} for body in bodies]
    first = await w.send(1, "to be edited")
    contents.append({
        "msgtype": "m.text", "body": "* edited",
        "m.new_content": {"msgtype": "m.text", "body": "edited"},
        "m.relates_to": {"rel_type": "m.replace", "event_id": first[0].event_id},
    })
    contents.append({
        "msgtype": "m.file", "body": "report.pdf",
        "file": {"url": "mxc://demo.localhost/none", "v": "v2", "iv": "AAAA", "hashes": {},
                 "key": {"kty": "oct", "k": "AAAA", "alg": "A256CTR", "ext": True, "key_ops": []}},
    })
    for content in contents:
        w.sent.append(await w.alice.send(w.room, content["body"], content))
    await w.arrived()


@case()
async def storm(w: World):
    """Two senders write all the time while the bridge is killed again and again."""
    await w.up()
    bob = await w.device(await w.user("bob"), "laptop")
    other = await w.new_room(bob)
    going = True

    async def write(sender, room, name):
        n = 0
        while going:
            n += 1
            w.sent.append(await sender.send(room, f"{name} in the storm, number {n}"))
            if n % 17 == 0:
                sender.rotate(room)
            await asyncio.sleep(random.uniform(0, 0.3))

    writers = asyncio.gather(
        write(w.alice, w.room, "alice"), write(bob, other, "bob")
    )
    for _ in range(6):
        await asyncio.sleep(random.uniform(0.2, 3))
        await w.bridge.kill9()
        await asyncio.sleep(random.uniform(0, 0.5))
        await w.bridge.start()
    going = False
    await writers
    await w.arrived(120)


@case()
async def killed_in_sync(w: World):
    """Many room keys wait in one sync, and the bridge is killed in the middle of it, many times."""
    await w.up()
    await w.send(1, "before")
    await w.arrived()
    await w.bridge.kill9()
    await w.send(1, "to take the time")
    began = time.monotonic()
    await w.bridge.start()
    await w.arrived()
    takes = time.monotonic() - began
    for round in range(8):
        await w.bridge.kill9()
        device = await w.device(w.alice_id, f"device {round}")
        for n in range(6):
            device.rotate(w.room)
            await w.send(1, f"a session of its own: {round}.{n}", device)
        await w.bridge.start()
        await asyncio.sleep(takes * random.uniform(0.4, 1.1))
    await w.bridge.kill9()
    await w.bridge.start()
    await w.arrived(30)
