"""A Synapse homeserver for one run: SQLite, one local port, no federation, no rate limits."""

import base64
import hashlib
import hmac
import json
import os
import secrets
import sqlite3
import sys
from pathlib import Path
from urllib.parse import quote

import aiohttp

from .processes import Child, Timeout, free_port, until

SERVER_NAME = "demo.localhost"
UNLIMITED = {"per_second": 100000, "burst_count": 100000}


def config(directory: Path, port: int, shared_secret: str) -> dict:
    return {
        "server_name": SERVER_NAME,
        "public_baseurl": f"http://127.0.0.1:{port}/",
        "pid_file": str(directory / "synapse.pid"),
        "listeners": [
            {
                "port": port,
                "type": "http",
                "bind_addresses": ["127.0.0.1"],
                "resources": [{"names": ["client"]}],
            }
        ],
        "database": {
            "name": "sqlite3",
            "args": {"database": str(directory / "homeserver.db")},
        },
        "log_config": str(directory / "log.yaml"),
        "media_store_path": str(directory / "media"),
        "signing_key_path": str(directory / "signing.key"),
        "registration_shared_secret": shared_secret,
        "macaroon_secret_key": secrets.token_hex(16),
        "form_secret": secrets.token_hex(16),
        "report_stats": False,
        "trusted_key_servers": [],
        "federation_domain_whitelist": [],
        "presence": {"enabled": False},
        # By default Synapse caches sync responses for two minutes.
        "caches": {"sync_response_cache_duration": "0s"},
        "bcrypt_rounds": 4,
        "rc_message": UNLIMITED,
        "rc_registration": UNLIMITED,
        "rc_joins": {"local": UNLIMITED, "remote": UNLIMITED},
        "rc_room_creation": UNLIMITED,
        "rc_invites": {"per_room": UNLIMITED, "per_user": UNLIMITED, "per_issuer": UNLIMITED},
        "rc_login": {"address": UNLIMITED, "account": UNLIMITED, "failed_attempts": UNLIMITED},
        "rc_key_requests": UNLIMITED,
    }


LOGGING = {
    "version": 1,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"level": "WARNING", "handlers": ["console"]},
}


class Synapse:
    def __init__(self, directory: Path, log: Path):
        self.directory = directory
        self.child = Child("Synapse", log)
        self.port = 0
        self._secret = secrets.token_hex(16)
        self._admin: str | None = None
        self._http: aiohttp.ClientSession | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self):
        """Start, or restart with the same port and database."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._http = self._http or aiohttp.ClientSession()
        for attempt in range(3):
            if not (self.directory / "homeserver.yaml").exists():
                self._configure()
            await self.child.start(
                os.environ.get("SYNAPSE_PYTHON", sys.executable), "-m", "synapse.app.homeserver",
                "--config-path", self.directory / "homeserver.yaml",
                cwd=self.directory,
            )
            try:
                await until(self._answers, 60, "Synapse to answer", 0.1, self.child.tail)
                return
            except Timeout:
                taken = "in use" in self.child.output()
                await self.child.kill9()
                if not taken or attempt == 2:
                    raise
                (self.directory / "homeserver.yaml").unlink()

    def _configure(self):
        self.port = free_port()
        write = lambda name, value: (self.directory / name).write_text(json.dumps(value))
        write("homeserver.yaml", config(self.directory, self.port, self._secret))
        write("log.yaml", LOGGING)
        seed = base64.b64encode(secrets.token_bytes(32)).decode().rstrip("=")
        (self.directory / "signing.key").write_text(f"ed25519 a_demo {seed}\n")

    async def _answers(self) -> bool:
        if not self.child.running:
            raise Timeout(f"Synapse exited with code {self.child.code}\n{self.child.tail()}")
        try:
            async with self._http.get(self.url + "/_matrix/client/versions") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def stop(self):
        await self.child.stop()

    async def close(self):
        await self.child.stop(5)
        if self._http:
            await self._http.close()

    async def request(self, method: str, path: str, body=None, token=None) -> dict:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self._http.request(
            method, self.url + path, json=body, headers=headers
        ) as answer:
            content = await answer.json()
            if answer.status != 200:
                raise RuntimeError(f"{method} {path}: {answer.status} {content}")
            return content

    async def register(self, name: str, password: str, admin: bool = False) -> dict:
        """Register an account with the shared secret. `inhibit_login` avoids creating a device."""
        path = "/_synapse/admin/v1/register"
        nonce = (await self.request("GET", path))["nonce"]
        mac = hmac.new(self._secret.encode(), digestmod=hashlib.sha1)
        mac.update("\0".join([nonce, name, password, "admin" if admin else "notadmin"]).encode())
        return await self.request("POST", path, {
            "nonce": nonce,
            "username": name,
            "password": password,
            "admin": admin,
            "inhibit_login": not admin,
            "mac": mac.hexdigest(),
        })

    async def admin(self) -> str:
        if not self._admin:
            account = await self.register("admin", secrets.token_hex(8), admin=True)
            self._admin = account["access_token"]
        return self._admin

    async def devices(self, user_id: str) -> list[str]:
        path = f"/_synapse/admin/v2/users/{user_id}/devices"
        answer = await self.request("GET", path, token=await self.admin())
        return [device["device_id"] for device in answer["devices"]]

    async def device_keys(self, user_id: str, token: str) -> list[str]:
        """The user's devices that have uploaded keys."""
        query = {"device_keys": {user_id: []}}
        answer = await self.request("POST", "/_matrix/client/v3/keys/query", query, token)
        return list(answer["device_keys"].get(user_id, {}))

    async def delete_device(self, user_id: str, device: str):
        """As its user does in another client: its access token and its keys are gone."""
        path = f"/_synapse/admin/v2/users/{user_id}/devices/{device}"
        await self.request("DELETE", path, token=await self.admin())

    def logins(self, user_id: str) -> list[int]:
        """The ids of the user's access tokens; each login adds one."""
        rows = self._select("SELECT id FROM access_tokens WHERE user_id = ?", user_id)
        return sorted(row[0] for row in rows)

    def undelivered(self, user_id: str, device: str) -> list[str]:
        """The types of the to-device messages that wait for a device."""
        sql = "SELECT message_json FROM device_inbox WHERE user_id = ? AND device_id = ?"
        rows = self._select(sql, user_id, device)
        return [json.loads(row[0])["type"] for row in rows]

    def _select(self, sql: str, *values: str) -> list[tuple]:
        uri = f"file:{self.directory / 'homeserver.db'}?mode=ro"
        with sqlite3.connect(uri, uri=True, timeout=10) as db:
            return db.execute(sql, values).fetchall()

    async def login(self, user_id: str, password: str) -> dict:
        return await self.request("POST", "/_matrix/client/v3/login", {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": user_id},
            "password": password,
        })

    async def logout(self, token: str):
        await self.request("POST", "/_matrix/client/v3/logout", {}, token)

    async def stored_event(self, room_id: str, event_id: str, token: str) -> dict:
        """The event as stored by the server."""
        path = f"/_matrix/client/v3/rooms/{quote(room_id)}/event/{quote(event_id)}"
        return await self.request("GET", path, token=token)
