"""What is not a plain encrypted message: each handled as the bridge's README says."""

import asyncio

from ..processes import until
from ..world import World, expect
from . import case


@case()
async def plain_room(w: World):
    """Messages of a room without encryption are delivered, and marked."""
    await w.up()
    room = await w.new_room(w.alice, encrypted=False)
    await w.send(3, "in the clear", room=room)
    await w.arrived()
    for delivery in w.sink.delivered:
        marks = delivery.message["encrypted"], delivery.message["verification"]
        expect(marks == (False, "unencrypted"), f"marked as {marks}")


@case()
async def redaction_and_echo(w: World):
    """What is redacted before its delivery is not delivered; nor are the bot's own messages."""
    await w.up()
    w.sink.mode = "503"
    sent = await w.send(3, "to be taken back or not")
    await until(lambda: w.sink.refused > 0, 30, "the webhook to be asked", detail=w.bridge.tail)
    await w.alice.client.room_redact(w.room, sent[1].event_id, "a mistake")
    login = await w.synapse.login(w.bot, w.passwords[w.bot])
    path = f"/_matrix/client/v3/rooms/{w.room}/send/m.room.message/1"
    echo = {"msgtype": "m.text", "body": "the bot's own words"}
    await w.synapse.request("PUT", path, echo, login["access_token"])
    last = await w.send(1, "the last one")
    await asyncio.sleep(2)  # the redaction must have reached the bridge
    w.sink.mode = "ok"
    await w.arrived(60, last)
    got = [(d.message["type"], d.message["body"]) for d in w.sink.delivered]
    want = [("m.room.message", m.body) for m in (sent[0], sent[2])]
    want += [("m.room.redaction", ""), ("m.room.message", last[0].body)]
    expect(got == want, f"delivered {got}")
    redaction = w.sink.delivered.pop(2)
    expect(redaction.message["content"]["redacts"] == sent[1].event_id, "it redacts another event")


@case()
async def stolen_ciphertext(w: World):
    """Bob sends Alice's ciphertext as his own: it is not delivered as his."""
    await w.up()
    bob = await w.user("bob")
    await w.alice.client.room_invite(w.room, bob)
    login = await w.synapse.login(bob, w.passwords[bob])
    token = login["access_token"]
    await w.synapse.request("POST", f"/_matrix/client/v3/join/{w.room}", {}, token)
    await w.alice.sync()
    sent = await w.send(1, "by Alice")
    await w.arrived()
    path = f"/_matrix/client/v3/rooms/{w.room}"
    stolen = await w.synapse.request("GET", f"{path}/event/{sent[0].event_id}", token=token)
    await w.synapse.request("PUT", f"{path}/send/m.room.encrypted/1", stolen["content"], token)
    await w.send(1, "afterwards")
    await w.arrived(30)
    senders = {delivery.message["sender"] for delivery in w.sink.delivered}
    expect(senders == {w.alice_id}, f"delivered messages of {senders}")
    expect("claimed sender" in w.bridge.outputs(), "the bridge does not say why")


@case()
async def kicked_and_invited_again(w: World):
    """What was sent before a kick and after a new invitation arrives; what was sent between does not."""
    await w.up()
    await w.send(2, "before the kick")
    await w.arrived()
    await w.alice.client.room_kick(w.room, w.bot)
    await w.alice.sync()
    for n in range(3):
        await w.alice.send(w.room, f"while it was away {n}")
    await w.alice.client.room_invite(w.room, w.bot)
    await until(lambda: w.joined(w.alice, w.room), 30, "the bot to join", detail=w.bridge.tail)
    await w.alice.sync()
    await w.send(3, "back again")
    await w.arrived(60)
