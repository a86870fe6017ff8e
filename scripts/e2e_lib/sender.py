"""A Matrix user that sends encrypted messages, with matrix-nio, an independent implementation."""

import io
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from nio import AsyncClient, AsyncClientConfig, MessageDirection, RoomMessageText
from nio.responses import ErrorResponse, ShareGroupSessionResponse

from .synapse import Synapse

logging.getLogger("nio").setLevel(logging.CRITICAL)
logging.getLogger("peewee").setLevel(logging.CRITICAL)


@dataclass
class Sent:
    event_id: str
    room_id: str
    sender: str
    body: str
    content: dict
    session_id: str | None
    at: float


class _Client(AsyncClient):
    """An `AsyncClient` that can hold room keys back."""

    held = None

    async def _send(self, response_class, method, path, data=None, response_data=None, *a, **kw):
        if self.held is not None and response_class is ShareGroupSessionResponse:
            self.held.append((response_class, method, path, data, response_data))
            return None
        return await super()._send(response_class, method, path, data, response_data, *a, **kw)


def checked(response):
    if isinstance(response, ErrorResponse):
        raise RuntimeError(f"matrix-nio: {response}")
    return response


class Sender:
    """One device of one user."""

    def __init__(self, client: _Client):
        self.client = client

    @classmethod
    async def login(cls, synapse: Synapse, user_id: str, password: str, directory: Path, device: str):
        store = directory / device
        store.mkdir(parents=True)
        config = AsyncClientConfig(encryption_enabled=True, store_sync_tokens=True)
        client = _Client(synapse.url, user_id, store_path=str(store), config=config)
        sender = cls(client)
        checked(await client.login(password, device_name=device))
        if client.should_upload_keys:
            checked(await client.keys_upload())
        await sender.sync()
        return sender

    async def close(self):
        await self.client.close()

    async def sync(self):
        checked(await self.client.sync(timeout=0, full_state=True))
        if self.client.should_upload_keys:
            checked(await self.client.keys_upload())
        if self.client.should_query_keys:
            checked(await self.client.keys_query())

    async def create_room(self, name: str, invite: list[str], encrypted: bool = True) -> str:
        encryption = {
            "type": "m.room.encryption",
            "state_key": "",
            "content": {"algorithm": "m.megolm.v1.aes-sha2"},
        }
        answer = checked(await self.client.room_create(
            name=name, invite=invite, initial_state=[encryption] if encrypted else []
        ))
        return answer.room_id

    async def joined(self, room_id: str, user_id: str) -> bool:
        members = checked(await self.client.joined_members(room_id)).members
        return any(member.user_id == user_id for member in members)

    async def send(self, room_id: str, body: str, content: dict | None = None, type="m.room.message"):
        content = content or {"msgtype": "m.text", "body": body}
        at = time.monotonic()
        answer = checked(await self.client.room_send(
            room_id, type, dict(content), ignore_unverified_devices=True
        ))
        return Sent(
            answer.event_id, room_id, self.client.user_id, body, content,
            self.session_id(room_id), at,
        )

    async def read(self, room_id: str) -> dict[str, str]:
        """The bodies of the room's text messages that this device can decrypt, by event id."""
        await self.sync()
        found, start = {}, None
        while True:
            page = checked(await self.client.room_messages(
                room_id, start, direction=MessageDirection.front, limit=500
            ))
            texts = [event for event in page.chunk if isinstance(event, RoomMessageText)]
            found |= {event.event_id: event.body for event in texts if event.decrypted}
            if not page.end or not page.chunk:
                return found
            start = page.end

    def session_id(self, room_id: str) -> str | None:
        session = self.client.olm.outbound_group_sessions.get(room_id)
        return session.id if session else None

    def rotate(self, room_id: str):
        """Start a new Megolm session with the next message."""
        self.client.invalidate_outbound_session(room_id)

    def hold_keys(self):
        """From now on hold back the to-device messages that contain room keys."""
        self.client.held = []

    async def release_keys(self):
        """Send the to-device messages that were held back. Returns their number."""
        held, self.client.held = self.client.held, None
        for request in held:
            checked(await self.client._send(*request))
        return len(held)


async def encrypted_file(sender: Sender, name: str, mimetype: str, file: bytes) -> dict:
    """Upload a file, encrypted. Returns the content of a message with it."""
    upload, keys = await sender.client.upload(
        lambda *_: io.BytesIO(file), mimetype, name, encrypt=True, filesize=len(file)
    )
    return {
        "msgtype": "m.file", "body": name, "info": {"mimetype": mimetype, "size": len(file)},
        "file": {"url": checked(upload).content_uri, **keys},
    }
