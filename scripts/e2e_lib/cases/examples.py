"""The programs of examples/*.rs, killed between receiving a message and handling it."""

from ..processes import until
from ..world import World, expect
from . import case

# More than the pipe holds that nobody reads.
LONG = "x" * 6000


def handled_once(w: World, again: int):
    """Nothing is handled twice but what was in hand at a kill."""
    handled = w.bridge.handled()
    repeated = len(handled) - len(set(handled))
    expect(repeated <= again, f"{repeated} messages were handled again, not {again} at most")


async def killed_while_handling(w: World):
    """Up, two messages in hand at a kill, thirty more while it is dead."""
    await w.up(unread=True)
    in_hand = await w.send(2, f"in hand {LONG}")
    await w.bridge.hangs()
    await w.bridge.kill9()
    dead = await w.send(30, "while it was dead")
    await w.bridge.start()
    await w.bridge.has_handled(in_hand + dead)
    await w.bridge.has_handled(await w.send(3, "after the start"))
    handled_once(w, 0)


@case(example="outbox_bot")
async def example_outbox_bot(w: World):
    """examples/outbox_bot.rs: messages in hand at a kill, and those sent while it was dead, are handled."""
    await killed_while_handling(w)


@case(example="client_bot")
async def example_client_bot(w: World):
    """examples/client_bot.rs: the same."""
    await killed_while_handling(w)


@case(example="webhook_minimal")
async def example_webhook_minimal(w: World):
    """examples/webhook_minimal.rs: the same, with a webhook."""
    await w.up()
    await w.send(2, "before")
    await w.arrived()
    w.sink.mode = "hang"
    await w.send(2, "in hand")
    await until(lambda: w.sink.refused, 60, "a request", detail=w.bridge.tail)
    await w.bridge.kill9()
    await w.send(30, "while it was dead")
    w.sink.mode = "ok"
    await w.bridge.start()
    await w.arrived()
    expect(w.sink.duplicates == 0, f"{w.sink.duplicates} came twice")
