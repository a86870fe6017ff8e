"""Events other than plain encrypted messages, handled as documented in the bridge's README."""

import asyncio

from ..harness import Harness, expect
from ..processes import until
from . import case


@case()
async def plain_room(h: Harness):
    """Messages of an unencrypted room are delivered, and marked as unencrypted."""
    await h.set_up()
    room = await h.new_room(h.alice, encrypted=False)
    await h.send(3, "in the clear", room=room)
    await h.until_delivered()
    for delivery in h.sink.delivered:
        marks = delivery.message["encrypted"], delivery.message["verification"]
        expect(marks == (False, "unencrypted"), f"marked as {marks}")


@case()
async def redaction_and_echo(h: Harness):
    """Messages that are redacted before their delivery are not delivered, nor are the bot's own."""
    await h.set_up()
    h.sink.mode = "503"
    sent = await h.send(3, "to be redacted or not")
    await until(lambda: h.sink.refused > 0, 30, "a request to the webhook", detail=h.bridge.tail)
    await h.alice.client.room_redact(h.room, sent[1].event_id, "a mistake")
    login = await h.synapse.login(h.bot, h.passwords[h.bot])
    path = f"/_matrix/client/v3/rooms/{h.room}/send/m.room.message/1"
    echo = {"msgtype": "m.text", "body": "the bot's own message"}
    await h.synapse.request("PUT", path, echo, login["access_token"])
    last = await h.send(1, "the last one")
    await asyncio.sleep(2)  # the redaction must have reached the bridge
    h.sink.mode = "ok"
    await h.until_delivered(60, last)
    got = [(d.message["type"], d.message["body"]) for d in h.sink.delivered]
    want = [("m.room.message", m.body) for m in (sent[0], sent[2])]
    want += [("m.room.redaction", ""), ("m.room.message", last[0].body)]
    expect(got == want, f"delivered {got}")
    redaction = h.sink.delivered.pop(2)
    expect(redaction.message["content"]["redacts"] == sent[1].event_id, "it redacts another event")


@case()
async def stolen_ciphertext(h: Harness):
    """Bob sends Alice's ciphertext as his own: it is not delivered."""
    await h.set_up()
    bob = await h.user("bob")
    await h.alice.client.room_invite(h.room, bob)
    login = await h.synapse.login(bob, h.passwords[bob])
    token = login["access_token"]
    await h.synapse.request("POST", f"/_matrix/client/v3/join/{h.room}", {}, token)
    await h.alice.sync()
    sent = await h.send(1, "by Alice")
    await h.until_delivered()
    path = f"/_matrix/client/v3/rooms/{h.room}"
    stolen = await h.synapse.request("GET", f"{path}/event/{sent[0].event_id}", token=token)
    await h.synapse.request("PUT", f"{path}/send/m.room.encrypted/1", stolen["content"], token)
    await h.send(1, "afterwards")
    await h.until_delivered(30)
    senders = {delivery.message["sender"] for delivery in h.sink.delivered}
    expect(senders == {h.alice_id}, f"delivered messages of {senders}")
    expect("claimed sender" in h.bridge.outputs(), "the bridge does not log the reason")


@case()
async def kicked_and_invited_again(h: Harness):
    """Messages before a kick and after a new invitation are delivered, those in between are not."""
    await h.set_up()
    await h.send(2, "before the kick")
    await h.until_delivered()
    await h.alice.client.room_kick(h.room, h.bot)
    await h.alice.sync()
    for n in range(3):
        await h.alice.send(h.room, f"while it was away {n}")
    await h.alice.client.room_invite(h.room, h.bot)
    await until(lambda: h.joined(h.alice, h.room), 30, "the bot to join", detail=h.bridge.tail)
    await h.alice.sync()
    await h.send(3, "back again")
    await h.until_delivered(60)
