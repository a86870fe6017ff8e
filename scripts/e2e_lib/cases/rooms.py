"""Invitations, upgraded rooms, and the bot's removal from rooms."""

import asyncio

from ..harness import Harness, expect
from ..processes import until
from . import case
from .trust import metric, until_logged, until_metric


async def invited(h: Harness, sender) -> str:
    room = await sender.create_room("an invitation", [h.bot])
    h.owners[room] = sender
    return room


async def membership(sender, room: str, user: str) -> str | None:
    answer = await sender.client.room_get_state_event(room, "m.room.member", user)
    return getattr(answer, "content", {}).get("membership")


@case()
async def invitations_allowed(h: Harness):
    """Only invitations from the allow-list's users and servers are accepted; others are declined."""
    allow = "elsewhere.example,@al*:demo.localhost"
    await h.set_up(BRIDGE_INVITE_ALLOW=allow)
    stranger = await h.device(await h.user("stranger"), "phone")
    room = await invited(h, stranger)
    declined = lambda: membership(stranger, room, h.bot)
    await until(lambda: is_now(declined, "leave"), 60, "the invitation to be declined", detail=h.bridge.tail)
    await until_metric(h, "invitations_declined_total", lambda value: value == 1)
    await h.send(2, "from an allowed user")
    await h.until_delivered()
    await h.bridge.child.stop()
    await h.bridge.start(BRIDGE_INVITE_ALLOW=allow + ",demo.localhost")
    await stranger.client.room_invite(room, h.bot)
    await until(lambda: h.joined(stranger, room), 60, "the bot to join", 0.1, h.bridge.tail)
    await stranger.sync()
    await h.send(2, "from an allowed server", stranger, room)
    await h.until_delivered()


async def is_now(read, wanted: str) -> bool:
    return await read() == wanted


async def upgrade(h: Harness, room: str) -> str:
    path = f"/_matrix/client/v3/rooms/{room}/upgrade"
    token = h.owners[room].client.access_token
    answer = await h.synapse.request("POST", path, {"new_version": "11"}, token)
    return answer["replacement_room"]


@case()
async def upgraded_room(h: Harness):
    """Upgraded rooms are followed: a public one at once, a private one with the invitation that follows."""
    await h.set_up(BRIDGE_INVITE_ALLOW=h.alice_id)
    await h.send(2, "in the old room")
    await h.until_delivered()
    public = await h.new_room(h.alice)
    rules = {"join_rule": "public"}
    await h.alice.client.room_put_state(public, "m.room.join_rules", rules)
    # A moderator upgrades the private room; their invitations alone would be declined.
    bob = await h.device(await h.user("bob"), "phone")
    await h.alice.client.room_invite(h.room, bob.client.user_id)
    await bob.client.join(h.room)
    levels = await h.alice.client.room_get_state_event(h.room, "m.room.power_levels")
    levels.content["users"][bob.client.user_id] = 100
    levels.content["events"]["m.room.tombstone"] = 100
    await h.alice.client.room_put_state(h.room, "m.room.power_levels", levels.content)
    h.owners[h.room] = bob
    for room, upgrader in [(public, h.alice), (h.room, bob)]:
        new = await upgrade(h, room)
        h.owners[new] = upgrader
        if room == h.room:
            await until_logged(h, "an invitation cannot be accepted yet")
            await bob.client.room_invite(new, h.bot)
        await until(lambda: h.joined(upgrader, new), 60, "the bot to follow", 0.1, h.bridge.tail)
        await upgrader.sync()
        await h.send(2, "in the new room", upgrader, new)
        await h.until_delivered()


@case()
async def kicked_and_banned(h: Harness):
    """A kick or ban is logged and counted, other rooms go on, and the bot returns when it is invited again."""
    await h.set_up()
    other = await h.new_room(h.alice)
    remove = {"kick": h.alice.client.room_kick, "ban": h.alice.client.room_ban}
    for kind, action in remove.items():
        h.sink.mode = "503"
        refused = h.sink.refused
        await h.send(2, f"before the {kind}")
        await until(lambda: h.sink.refused > refused, 30, "a request to the webhook", detail=h.bridge.tail)
        await action(h.room, h.bot, "a test")
        await until_metric(h, f'removals_total{{kind="{kind}"}}', lambda value: value == 1)
        h.sink.mode = "ok"
        await h.send(2, f"elsewhere after the {kind}", room=other)
        await h.until_delivered()
        await h.alice.client.room_unban(h.room, h.bot)
        await asyncio.sleep(0.5)
        await h.alice.client.room_invite(h.room, h.bot)
        await until(lambda: h.joined(h.alice, h.room), 60, "the bot to return", 0.1, h.bridge.tail)
        await h.alice.sync()
        await h.send(2, f"after the return from the {kind}")
        await h.until_delivered()
    expect("by=\"@alice" in h.bridge.child.output(), "the log does not name who removed the bot")
