"""The harness of one case: a bot, a sender, a room and a sink, on the run's shared Synapse."""

import secrets
from pathlib import Path

from .bridge import Bridge
from .example import Example
from .processes import Timeout, until
from .sender import Sender, Sent
from .sink import Sink
from .synapse import SERVER_NAME, Synapse


class Failure(Exception):
    """An expectation was not met."""


def expect(true, what: str):
    if not true:
        raise Failure(what)


def local_part(user_id: str) -> str:
    return user_id[1:].split(":")[0]


class Harness:
    def __init__(
        self, synapse: Synapse, directory: Path, logs: Path, name: str, database: str | None = None
    ):
        self.synapse, self.directory, self.logs = synapse, directory, logs
        self.name = name.replace("_", "-")
        self.database = database
        self.passwords: dict[str, str] = {}
        self.sink = Sink()
        self.sent: list[Sent] = []
        self.senders: list[Sender] = []
        self.room = ""
        self.owners: dict[str, Sender] = {}

    async def open(self, webhook_token: str | None = None, example: str | None = None):
        """With `example`, that program is in the bridge's place."""
        self.sink.token = webhook_token
        await self.sink.open()
        self.bot = await self.user("bot")
        self.alice_id = await self.user("alice")
        of_bot = (
            self.synapse, self.sink, self.bot, self.passwords[self.bot],
            self.directory / "bridge", self.logs,
        )
        self.bridge = Example(*of_bot, name=example) if example else Bridge(*of_bot)
        if self.database:
            self.bridge.env["DATABASE_URL"] = self.database

    async def user(self, name: str) -> str:
        """Create an account; its name includes the case's, so that cases are independent."""
        local = f"{name}-{self.name}" if self.name else name
        password = secrets.token_hex(12)
        await self.synapse.register(local, password)
        user_id = f"@{local}:{SERVER_NAME}"
        self.passwords[user_id] = password
        return user_id

    async def device(self, user_id: str, device: str) -> Sender:
        sender = await Sender.login(
            self.synapse, user_id, self.passwords[user_id], self.directory / local_part(user_id), device
        )
        self.senders.append(sender)
        return sender

    async def set_up(self, **changes):
        """Start the bridge, and wait until the bot has joined Alice's encrypted room."""
        await self.bridge.start(**changes)
        self.alice = await self.device(self.alice_id, "phone")
        self.room = await self.new_room(self.alice)
        return self

    async def new_room(self, owner: Sender, *others: str, encrypted: bool = True) -> str:
        room = await owner.create_room(self.name or "demo", [self.bot, *others], encrypted)
        self.owners[room] = owner
        await until(lambda: self.joined(owner, room), 90, "the bot to join", 0.1, self.bridge.tail)
        await owner.sync()
        return room

    async def joined(self, owner: Sender, room: str) -> bool:
        self.bridge.check_running()
        return await owner.joined(room, self.bot)

    async def send(self, count: int, what: str, sender: Sender | None = None, room: str | None = None):
        """Send `count` encrypted messages, one after the other."""
        sent = []
        for n in range(1, count + 1):
            message = await (sender or self.alice).send(room or self.room, f"{what} {n} of {count}")
            self.sent.append(message)
            sent.append(message)
        return sent

    def missing(self, sent: list[Sent] | None = None) -> list[Sent]:
        first = self.sink.first()
        return [m for m in (self.sent if sent is None else sent) if m.event_id not in first]

    async def until_delivered(self, seconds: float = 90, sent: list[Sent] | None = None):
        """Wait until all sent messages have been delivered."""
        def all_delivered():
            self.bridge.check_running()
            return not self.missing(sent)

        try:
            await until(all_delivered, seconds, "the messages to arrive")
        except Timeout as late:
            lost = self.missing(sent)
            names = ", ".join(m.body[:40] for m in lost[:5])
            of = len(self.sent if sent is None else sent)
            tail = "" if "the end of" in str(late) else "\n" + self.bridge.tail()
            raise Failure(f"{len(lost)} of {of} did not arrive ({names}…): {late}{tail}") from None

    async def check(self, out_of_order: list[Sent] = ()):
        """After a case: check that the deliveries are correct and in order."""
        first = self.sink.first()
        by_id = {message.event_id: message for message in self.sent}
        for event_id, delivery in first.items():
            expect(event_id in by_id, f"delivered but never sent: {delivery.message}")
            message, got = by_id[event_id], delivery.message
            for name, want in [
                ("room_id", message.room_id), ("sender", message.sender),
                ("body", message.body), ("content", message.content), ("type", "m.room.message"),
            ]:
                expect(got.get(name) == want, f"{name} is {got.get(name)!r}, sent was {want!r}")
            expect(
                got["verification"].lower() != "verified",
                f"{message.sender} is not verified, but was reported as verified",
            )
        expect(not self.sink.problems, "; ".join(self.sink.problems[:3]))
        ignored = {message.event_id for message in out_of_order}
        for room in {message.room_id for message in self.sent}:
            order = [e for e in await self.order(room) if e in first and e not in ignored]
            arrived = [
                e for e, d in first.items() if d.message["room_id"] == room and e not in ignored
            ]
            expect(order == arrived, f"out of order in {room}: {self.first_swap(order, arrived, by_id)}")
        self.check_outputs()

    def first_swap(self, order, arrived, by_id) -> str:
        for want, got in zip(order, arrived):
            if want != got:
                return f"{by_id[got].body!r} came before {by_id[want].body!r}"
        return "lengths differ"

    def check_outputs(self):
        """Check that no log contains a secret or a panic."""
        text = self.bridge.outputs()
        private = [self.passwords[self.bot], self.bridge.env["STORE_PASSPHRASE"]]
        private += [self.sink.token] if self.sink.token else []
        private += [message.body for message in self.sent if len(message.body) > 12]
        for word in private:
            expect(word not in text, f"the bridge's output contains a secret or a message: {word[:40]!r}")
        expect("panicked at" not in text, f"the bridge panicked\n{self.bridge.tail()}")
        expect("syt_" not in text, "the bridge's output contains an access token")

    async def order(self, room: str) -> list[str]:
        """The ids of the room's events in the server's order."""
        return [event["event_id"] for event in await self.events(room)]

    async def encrypted_events(self, room: str, sender: str) -> list[dict]:
        events = await self.events(room)
        return [e for e in events if e["type"] == "m.room.encrypted" and e["sender"] == sender]

    async def events(self, room: str) -> list[dict]:
        """The room's events in the server's order."""
        token, start, found = self.owners[room].client.access_token, "", []
        while True:
            path = f"/_matrix/client/v3/rooms/{room}/messages?dir=f&limit=500{start}"
            page = await self.synapse.request("GET", path, token=token)
            found += page["chunk"]
            if not page.get("end") or not page["chunk"]:
                return found
            start = f"&from={page['end']}"

    async def close(self):
        for sender in self.senders:
            await sender.close()
        await self.bridge.close()
        await self.sink.close()
