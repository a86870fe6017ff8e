"""`scripts/demo`: demonstrates the bridge through a kill -9 and a restart."""

import asyncio
import json
import shutil
import signal
import sys
import time

from . import show
from .bridge import ROOT
from .harness import Failure, Harness
from .processes import Scratch, Timeout, until
from .sender import Sender
from .sink import Delivery
from .synapse import Synapse

LOGS = ROOT / "target" / "e2e" / "demo"

WHILE_RUNNING = [
    "Hello, this is Alice.",
    "My phone encrypts this message before it is sent.",
    "The homeserver stores it and cannot decrypt it.",
    "The bot can. Its keys are stored in PostgreSQL only.",
    'Unicode and JSON are kept: Grüße! Привет! 你好! {"json": "\\u0041"}',
    "So far, so good. Next: kill -9.",
]
WHILE_DOWN = [
    "The bridge was killed and could not save anything.",
    "This is sent on the same Megolm session.",
    "The session's ratchet is in a table, not in the process.",
    "So it can still be decrypted after the restart.",
    "A sync returns a limited number of messages per room.",
    "More messages than that follow.",
    "Seven.",
    "Eight.",
    "Nine.",
    "Ten.",
    "Eleven: now there is a gap to fill after the restart.",
    "The key is rotated while the bridge is down:",
    "this one is on a new Megolm session.",
    "Its key waits on the homeserver until the next sync.",
]
AFTER_RESTART = ["The bridge was restarted: this is delivered at once."]
NEW_DEVICE = [
    "Alice again, on a tablet that is new to the bot.",
    "This device has other keys.",
    "The bot received the room key of the new device.",
    "This is the last message.",
]


class Demo:
    def __init__(self, harness: Harness):
        self.harness = harness
        self.sent = {}
        self.seen = set()
        harness.sink.on_delivery = self.on_delivery

    def on_delivery(self, delivery: Delivery):
        """Callback of the sink, for each delivery."""
        asyncio.get_running_loop().create_task(self.show_delivery(delivery))

    async def show_delivery(self, delivery: Delivery):
        # The webhook may receive a message before the sender has received its event id.
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

    async def send(self, bodies: list[str], sender: Sender, name: str, bridge_down: bool = False):
        for body in bodies:
            if bridge_down and "new Megolm" in body:
                sender.rotate(self.harness.room)
            sent = await sender.send(self.harness.room, body)
            self.sent[sent.event_id] = (sent, name)
            self.harness.sent.append(sent)
            if bridge_down:
                show.message("·", "yellow", name, body, "sent")
            await asyncio.sleep(0.08 if bridge_down else 0.25)

    async def until_all_delivered(self):
        await self.harness.until_delivered(120)
        await until(lambda: len(self.seen) >= len(self.harness.sent), 10, "the last lines")


async def run_demo(synapse: Synapse, scratch: Scratch) -> bool:
    began = time.monotonic()
    await synapse.start()
    show.done(f"Synapse, a Matrix homeserver, runs at {synapse.url}", time.monotonic() - began)
    harness = Harness(synapse, scratch.path / "demo", LOGS, name="")
    try:
        await harness.open(webhook_token="a token")
        demo = Demo(harness)
        show.done(f"A webhook listens at {harness.sink.url}")
        began = time.monotonic()
        await harness.set_up()
        show.done(
            "The bridge runs with an embedded PostgreSQL, and has joined Alice's encrypted room",
            time.monotonic() - began,
        )
        await run_steps(harness, demo)
    except (Failure, Timeout, RuntimeError) as reason:
        show.line(f"{show.paint('✗', 'red')} {reason}")
    finally:
        await harness.close()
    return await summary(harness)


async def run_steps(harness: Harness, demo: Demo):
    show.heading("1  Alice sends messages, the webhook receives them")
    await demo.send(WHILE_RUNNING, harness.alice, "alice")
    await demo.until_all_delivered()
    await show_both_forms(harness)

    show.heading(f"2  kill -9 {harness.bridge.child.process.pid}: the bridge is down, Alice continues")
    await harness.bridge.kill9()
    await demo.send(WHILE_DOWN, harness.alice, "alice", bridge_down=True)

    show.heading("3  The bridge is restarted")
    await harness.bridge.start()
    await demo.until_all_delivered()
    await demo.send(AFTER_RESTART, harness.alice, "alice")
    await demo.until_all_delivered()

    show.heading("4  Alice uses a new device")
    tablet = await harness.device(harness.alice_id, "tablet")
    await demo.send(NEW_DEVICE, tablet, "alice’s tablet")
    await demo.until_all_delivered()


async def show_both_forms(harness: Harness):
    """Show the same message as stored by the server and as received by the webhook."""
    sent = harness.sent[0]
    stored = await harness.synapse.stored_event(
        sent.room_id, sent.event_id, harness.alice.client.access_token
    )
    got = harness.sink.first()[sent.event_id].message
    columns = min(shutil.get_terminal_size((96, 24)).columns, 110) - 4
    show.line()
    show.note("The first message as stored by the homeserver:")
    show.line("    " + show.fit(f"{stored['type']}  {stored['content']['ciphertext']}", columns).rstrip())
    show.note("and as received by the webhook:")
    for name in ("event_id", "sender", "timestamp", "type", "body", "verification"):
        text = json.dumps({name: got.get(name)}, ensure_ascii=False)[1:-1]
        show.line("    " + show.fit(text, columns).rstrip())


async def summary(harness: Harness) -> bool:
    lost, duplicates = len(harness.missing()), harness.sink.duplicates
    arrived = len(harness.sent) - lost
    right = bool(harness.sent) and not lost and not harness.sink.problems
    try:
        await harness.check()
    except Failure as reason:
        right = False
        show.line(f"{show.paint('✗', 'red')} {reason}")
    complete = len(harness.sent) == sum(map(len, (WHILE_RUNNING, WHILE_DOWN, AFTER_RESTART, NEW_DEVICE)))
    show.heading(show.paint(
        f"sent {len(harness.sent)}, arrived {arrived}, lost {lost}, duplicates {duplicates}",
        "green" if right and complete else "red",
    ))
    if not (right and complete):
        show.note(f"The logs of the bridge are in {LOGS.relative_to(ROOT)}")
        return False
    show.note("Every message arrived decrypted and in order, through a kill -9.")
    show.line()
    show.line("To run it with your own bot account:")
    for text in (
        "export MATRIX_HOMESERVER=https://… MATRIX_USER=@bot:… MATRIX_PASSWORD=…",
        "export STORE_PASSPHRASE=… WEBHOOK_URL=https://…",
        "cargo run --release -p webhook_bridge -- --embedded-postgres",
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
        return 0 if await run_demo(synapse, scratch) else 1
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
