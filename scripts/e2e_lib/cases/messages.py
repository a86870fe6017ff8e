"""Messages while only the bridge itself is killed and restarted."""

import asyncio
import random
import time

from ..harness import Harness, expect
from . import case


@case()
async def running(h: Harness):
    """20 messages while the bridge runs."""
    await h.set_up()
    await h.send(20, "live")
    await h.until_delivered()
    expect(h.sink.duplicates == 0, f"{h.sink.duplicates} duplicates without a crash")


@case()
async def killed(h: Harness):
    """20 messages on the same Megolm session while the bridge is down after kill -9."""
    await h.set_up()
    before = await h.send(1, "before the kill")
    await h.until_delivered()
    await h.bridge.kill9()
    during = await h.send(20, "while it was down")
    sessions = {message.session_id for message in before + during}
    expect(len(sessions) == 1, "the sender did not keep its Megolm session")
    await h.bridge.start()
    await h.until_delivered()


@case()
async def rotated(h: Harness):
    """20 messages after the sender rotated its Megolm session."""
    await h.set_up()
    before = await h.send(2, "old session")
    await h.until_delivered()
    h.alice.rotate(h.room)
    after = await h.send(20, "new session")
    expect(before[0].session_id != after[0].session_id, "the sender did not rotate its Megolm session")
    await h.until_delivered()


@case()
async def rotated_while_down(h: Harness):
    """20 messages on a Megolm session whose key was sent while the bridge was down."""
    await h.set_up()
    await h.send(2, "old session")
    await h.until_delivered()
    await h.bridge.kill9()
    h.alice.rotate(h.room)
    await h.send(20, "unseen session")
    await h.bridge.start()
    await h.until_delivered()


@case()
async def new_device(h: Harness):
    """20 messages from a new device of the sender."""
    await h.set_up()
    await h.send(2, "phone")
    await h.until_delivered()
    tablet = await h.device(h.alice_id, "tablet")
    await h.send(20, "tablet", tablet)
    await h.until_delivered()


@case(webhook_token="a token for the webhook")
async def bearer_token(h: Harness):
    """Every request has the webhook's bearer token."""
    await h.set_up()
    await h.send(3, "with a token")
    await h.until_delivered()


@case()
async def two_rooms(h: Harness):
    """Two concurrent senders in two rooms; order is kept within each room."""
    await h.set_up()
    bob_id = await h.user("bob")
    bob = await h.device(bob_id, "laptop")
    other = await h.new_room(bob)
    await asyncio.gather(h.send(15, "alice"), h.send(15, "bob", bob, other))
    await h.until_delivered()


@case()
async def message_contents(h: Harness):
    """Bodies that are difficult for databases and JSON, an edit, a file."""
    # By default the keys of attachments are left out.
    await h.set_up(BRIDGE_ATTACHMENTS="keys")
    bodies = ["", "NUL \0 inside", "שלום → 你好 👩‍👩‍👧", "two\nlines\r\n", '"quotes" \\u0000 \\', "x" * 40000]
    contents = [{"msgtype": "m.text", "body": body} for body in bodies]
    first = await h.send(1, "to be edited")
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
        h.sent.append(await h.alice.send(h.room, content["body"], content))
    await h.until_delivered()


@case()
async def repeated_kills(h: Harness):
    """Two senders send continuously while the bridge is killed repeatedly."""
    await h.set_up()
    bob = await h.device(await h.user("bob"), "laptop")
    other = await h.new_room(bob)
    going = True

    async def write(sender, room, name):
        n = 0
        while going:
            n += 1
            h.sent.append(await sender.send(room, f"{name} under repeated kills, number {n}"))
            if n % 17 == 0:
                sender.rotate(room)
            await asyncio.sleep(random.uniform(0, 0.3))

    writers = asyncio.gather(
        write(h.alice, h.room, "alice"), write(bob, other, "bob")
    )
    for _ in range(6):
        await asyncio.sleep(random.uniform(0.2, 3))
        await h.bridge.kill9()
        await asyncio.sleep(random.uniform(0, 0.5))
        await h.bridge.start()
    going = False
    await writers
    await h.until_delivered(120)


@case()
async def killed_in_sync(h: Harness):
    """One sync has many room keys, and the bridge is killed during it, repeatedly."""
    await h.set_up()
    await h.send(1, "before")
    await h.until_delivered()
    await h.bridge.kill9()
    await h.send(1, "to measure the start")
    began = time.monotonic()
    await h.bridge.start()
    await h.until_delivered()
    takes = time.monotonic() - began
    for round in range(8):
        await h.bridge.kill9()
        device = await h.device(h.alice_id, f"device {round}")
        for n in range(6):
            device.rotate(h.room)
            await h.send(1, f"on a separate session: {round}.{n}", device)
        await h.bridge.start()
        await asyncio.sleep(takes * random.uniform(0.4, 1.1))
    await h.bridge.kill9()
    await h.bridge.start()
    await h.until_delivered(30)
