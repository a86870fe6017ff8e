"""The webhook: an HTTP server that records deliveries, and fails in a configurable way."""

import asyncio
import json
import time
from dataclasses import dataclass, field

from aiohttp import web

from .processes import free_port

FIELDS = {
    "event_id": str,
    "room_id": str,
    "sender": str,
    "timestamp": int,
    "type": str,
    "body": str,
    "content": dict,
    "verification": str,
}


@dataclass
class Delivery:
    """One request that the sink accepted."""

    message: dict
    headers: dict
    raw: bytes = b""
    at: float = field(default_factory=time.monotonic)

    @property
    def event_id(self) -> str:
        return self.message.get("event_id", "")


class Sink:
    def __init__(self, token: str | None = None):
        self.token = token
        self.port = 0
        self.mode = "ok"  # or "hang", "drop", or a status such as 503
        self.delivered: list[Delivery] = []
        self.refused = 0
        self.problems: list[str] = []
        self.on_delivery = None
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def open(self):
        """Listen; after `close`, on the same port again."""
        app = web.Application(client_max_size=16 * 2**20)
        app.router.add_post("/hook", self._receive)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        self.port = self.port or free_port()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def close(self):
        """Stop listening, so that connections are refused."""
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        if self.mode == "hang":
            self.refused += 1
            await asyncio.sleep(3600)
        if self.mode == "drop":
            self.refused += 1
            request.transport.abort()
            return web.Response()
        if self.mode != "ok":
            self.refused += 1
            return web.Response(status=int(self.mode), text="configured to fail")
        delivery = self._check(raw, dict(request.headers))
        if delivery is None:
            return web.Response(status=400)
        self.delivered.append(delivery)
        if self.on_delivery:
            self.on_delivery(delivery)
        return web.json_response({"ok": True})

    def _check(self, raw: bytes, headers: dict) -> Delivery | None:
        """Record deviations from the documented format in `problems`."""
        try:
            message = json.loads(raw)
            assert isinstance(message, dict)
        except (ValueError, AssertionError):
            self.problems.append(f"not a JSON object: {raw[:200]!r}")
            return None
        wrong = self.problems.append
        for name, kind in FIELDS.items():
            if type(message.get(name)) is not kind:
                wrong(f"{name} is {message.get(name)!r}, not a {kind.__name__}: {message}")
        if headers.get("Idempotency-Key") != message.get("event_id"):
            wrong(f"Idempotency-Key is {headers.get('Idempotency-Key')!r}, not the event id")
        if not headers.get("Content-Type", "").startswith("application/json"):
            wrong(f"Content-Type is {headers.get('Content-Type')!r}")
        expected = f"Bearer {self.token}" if self.token else None
        if headers.get("Authorization") != expected:
            wrong("Authorization is not the token that was configured")
        return Delivery(message, headers, raw)

    def first(self) -> dict[str, Delivery]:
        """Each event's first delivery, in the order of arrival."""
        found: dict[str, Delivery] = {}
        for delivery in self.delivered:
            found.setdefault(delivery.event_id, delivery)
        return found

    @property
    def duplicates(self) -> int:
        return len(self.delivered) - len(self.first())
