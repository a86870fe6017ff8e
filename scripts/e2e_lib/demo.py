"""`scripts/demo`: the bridge at work, killed and started again, for somebody who watches."""

import asyncio
import json
import shutil
import signal
import sys
import time

from . import show
from .bridge import ROOT
from .processes import Scratch, Timeout, until
from .sender import Sender
from .sink import Delivery
from .synapse import Synapse
from .world import Failure, World

LOGS = ROOT / "target" / "e2e" / "demo"

LIVE = [
    "Hello? Is anybody there?",
    "I am Alice. My phone encrypts this before it leaves.",
    "The server in between stores it and cannot read it.",
    "The bot can. Its keys are in PostgreSQL and nowhere else.",
    'Grüße! Привет! 你好! And {"json": "\\u0041"} is only text.',
    "All well so far. Shall we be rude to it?",
]
DEAD = [
    "Bot? You went quiet in the middle of a sentence.",
    "No time to save anything, no time to say goodbye.",
    "I go on writing on the same Megolm session.",
    "Its ratchet is in a table, not in that process.",
    "So nothing of it died. We shall see.",
    "By the way: a sync returns ten messages of a room.",
    "I mean to send more than that.",
    "Eight.",
    "Nine.",
    "Ten.",
    "Eleven! Now there is a gap, and it has to page back.",
    "Meanwhile I change the key, while nobody listens:",
    "this one is on a new Megolm session.",
    "Its key waits on the server, for a bot that is dead.",
]
AGAIN = ["Welcome back! Did you get all of that?"]
TABLET = [
    "Alice again, from a tablet that the bot has never met.",
    "Other device, other keys, same Alice.",
    "If you can read this, it found its way on its own.",
    "That was all. Thank you for watching.",
]


class Demo:
    def __init__(self, world: World):
        self.world = world
        self.sent = {}
        self.seen = set()
        world.sink.on_delivery = self.arrived

    def arrived(self, delivery: Delivery):
        """Called by the webhook, for each request."""
        asyncio.get_running_loop().create_task(self.tell(delivery))

    async def tell(self, delivery: Delivery):
        # A message can reach the webhook before its sender has heard that it was accepted.
        for _ in range(500):
            if delivery.event_id in self.sent:
                break
            await asyncio.sleep(0.01)
        sent, name = self.sent.get(delivery.event_id, (None, "?"))
        body = delivery.message.get("body", "")
        if sent is None:
            show.message("?", "red", "", body, "never sent")
        elif delivery.event_id in self.seen:
            show.message("↻", "yellow", name, body, "again")
        elif body != sent.body:
            show.message("✗", "red", name, body, "garbled")
        else:
            show.message("✓", "green", name, body, show.duration(delivery.at - sent.at))
        self.seen.add(delivery.event_id)

    async def say(self, bodies: list[str], sender: Sender, name: str, dead: bool = False):
        for body in bodies:
            if dead and "new Megolm" in body:
                sender.rotate(self.world.room)
            sent = await sender.send(self.world.room, body)
            self.sent[sent.event_id] = (sent, name)
            self.world.sent.append(sent)
            if dead:
                show.message("·", "yellow", name, body, "sent")
            await asyncio.sleep(0.08 if dead else 0.25)

    async def all_there(self):
        await self.world.arrived(120)
        await until(lambda: len(self.seen) >= len(self.world.sent), 10, "the last lines")


async def play(synapse: Synapse, scratch: Scratch) -> bool:
    began = time.monotonic()
    await synapse.start()
    show.done(f"Synapse, a Matrix homeserver, answers at {synapse.url}", time.monotonic() - began)
    world = World(synapse, scratch.path / "demo", LOGS, name="")
    try:
        await world.open(webhook_token="a token")
        demo = Demo(world)
        show.done(f"A webhook listens at {world.sink.url}")
        began = time.monotonic()
        await world.up()
        show.done(
            "The bridge runs with its own PostgreSQL, and has joined Alice's encrypted room",
            time.monotonic() - began,
        )
        await acts(world, demo)
    except (Failure, Timeout, RuntimeError) as reason:
        show.line(f"{show.paint('✗', 'red')} {reason}")
    finally:
        await world.close()
    return await summary(world)


async def acts(world: World, demo: Demo):
    show.heading("1  Alice writes, the webhook receives")
    await demo.say(LIVE, world.alice, "alice")
    await demo.all_there()
    await both_sides(world)

    show.heading(f"2  kill -9 {world.bridge.child.process.pid}: the bridge is dead, Alice goes on")
    await world.bridge.kill9()
    await demo.say(DEAD, world.alice, "alice", dead=True)

    show.heading("3  The bridge is started again")
    await world.bridge.start()
    await demo.all_there()
    await demo.say(AGAIN, world.alice, "alice")
    await demo.all_there()

    show.heading("4  Alice takes her new tablet")
    tablet = await world.device(world.alice_id, "tablet")
    await demo.say(TABLET, tablet, "alice’s tablet")
    await demo.all_there()


async def both_sides(world: World):
    """The same message as the server has it and as the webhook got it."""
    sent = world.sent[0]
    stored = await world.synapse.stored_event(
        sent.room_id, sent.event_id, world.alice.client.access_token
    )
    got = world.sink.first()[sent.event_id].message
    columns = min(shutil.get_terminal_size((96, 24)).columns, 110) - 4
    show.line()
    show.note("The first one as the homeserver has it:")
    show.line("    " + show.fit(f"{stored['type']}  {stored['content']['ciphertext']}", columns).rstrip())
    show.note("and as the webhook got it:")
    for name in ("event_id", "sender", "timestamp", "type", "body", "verification"):
        text = json.dumps({name: got.get(name)}, ensure_ascii=False)[1:-1]
        show.line("    " + show.fit(text, columns).rstrip())


async def summary(world: World) -> bool:
    lost, twice = len(world.missing()), world.sink.duplicates
    arrived = len(world.sent) - lost
    right = bool(world.sent) and not lost and not world.sink.problems
    try:
        await world.check()
    except Failure as reason:
        right = False
        show.line(f"{show.paint('✗', 'red')} {reason}")
    complete = len(world.sent) == sum(map(len, (LIVE, DEAD, AGAIN, TABLET)))
    show.heading(show.paint(
        f"sent {len(world.sent)}, arrived {arrived}, lost {lost}, duplicates {twice}",
        "green" if right and complete else "red",
    ))
    if not (right and complete):
        show.note(f"What the bridge said is in {LOGS.relative_to(ROOT)}")
        return False
    show.note("Every message arrived decrypted and in order, through a kill -9.")
    show.line()
    show.line("With a bot account of your own:")
    for text in (
        "export MATRIX_HOMESERVER=https://… MATRIX_USER=@bot:… MATRIX_PASSWORD=…",
        "export STORE_PASSPHRASE=… WEBHOOK_URL=https://…",
        "cargo run --release -p webhook_bridge -- --try",
    ):
        show.line("    " + text)
    return True


async def main() -> int:
    task = asyncio.current_task()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    shutil.rmtree(LOGS, ignore_errors=True)
    scratch = Scratch()
    synapse = Synapse(scratch.path / "synapse", LOGS / "synapse.log")
    try:
        return 0 if await play(synapse, scratch) else 1
    finally:
        await synapse.close()
        scratch.remove()


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except (KeyboardInterrupt, asyncio.CancelledError):
        show.line("\nStopped. Nothing is left running.")
        sys.exit(130)
    except Timeout as reason:
        show.line(f"{show.paint('✗', 'red')} {reason}")
        sys.exit(1)
