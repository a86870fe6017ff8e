"""What a bot sends, as matrix-nio receives it."""

import base64
import random
from collections import Counter

from ..harness import Harness, expect
from ..processes import until
from . import case


@case(example="answering_bot")
async def sends_over_kills(h: Harness):
    """A bot is killed while it sends: matrix-nio reads all messages, and no message index is used twice."""
    seed = random.randrange(2**32)
    choose = random.Random(seed)
    await h.set_up()
    # A kill at an early moment makes the SDK begin a new session: until one has gone on over a kill.
    for turn in range(12):
        count = choose.randrange(4, 45)
        before = len(await h.encrypted_events(h.room, h.bot))
        wanted = before + choose.randrange(1, count)
        await h.alice.send(h.room, f"send turn-{turn} {count}")

        async def has_sent():
            h.bridge.check_running()
            return len(await h.encrypted_events(h.room, h.bot)) >= wanted

        await until(has_sent, 60, f"the messages of turn {turn}, seed {seed}", 0.02, h.bridge.tail)
        await h.bridge.kill9()
        await h.bridge.start()
        ready = lambda: h.bridge.printed.read_text().count("ready") == turn + 2
        await until(ready, 60, "the next start", detail=h.bridge.tail)

        events = await h.encrypted_events(h.room, h.bot)
        indices = Counter(
            (event["content"]["session_id"], message_index(event["content"]["ciphertext"])) for event in events
        )
        sessions = {session for session, _ in indices}
        if turn >= 5 and len(sessions) <= turn:
            break
    expect(len(sessions) <= turn, f"each process began a session of its own, seed {seed}: {indices}")
    expect(max(indices.values()) == 1, f"message indices were used twice, seed {seed}: {indices}")
    bodies = await h.alice.read(h.room)
    unread = [event["event_id"] for event in events if event["event_id"] not in bodies]
    expect(not unread, f"matrix-nio cannot read {len(unread)} of {len(events)} messages, seed {seed}")


def message_index(ciphertext: str) -> int:
    """Of a Megolm message: a version byte, then the index as a varint behind the tag 0x08."""
    message = base64.b64decode(ciphertext + "=" * (-len(ciphertext) % 4))
    expect(message[:2] == b"\x03\x08", "not a Megolm message")
    index = 0
    for place, byte in enumerate(message[2:]):
        index |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return index
    raise ValueError("a varint without end")
