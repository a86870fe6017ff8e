"""A PostgreSQL server that is independent of the bridge, for the cases that stop it."""

import asyncio
import os
import pwd
import signal
import subprocess
from pathlib import Path

from .processes import Child, free_port, until


def unprivileged() -> str | None:
    """The user that runs PostgreSQL if this process is root, because PostgreSQL refuses root."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


class Postgres:
    def __init__(self, directory: Path, log: Path):
        self.bin = Path(os.environ["PG_BIN"])
        self.directory = directory
        self.user = unprivileged()
        self.port = free_port()
        self.child = Child("PostgreSQL", log)

    @property
    def url(self) -> str:
        return self.url_of("bridge", "postgres")

    def url_of(self, role: str, database: str) -> str:
        return f"postgresql://{role}@127.0.0.1:{self.port}/{database}"

    async def start(self):
        if not self.directory.exists():
            self.directory.mkdir(parents=True)
            if self.user:
                os.chown(self.directory, pwd.getpwnam(self.user).pw_uid, -1)
            await asyncio.to_thread(
                subprocess.run, [self.bin / "initdb", "--no-sync", "--auth=trust", "--encoding=UTF8",
                 "--locale=C", "--username=bridge", "--pgdata", self.directory],
                user=self.user, check=True, capture_output=True, cwd="/",
            )
        await self.child.start(
            self.bin / "postgres", "-D", self.directory, "-p", self.port,
            "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
            user=self.user, cwd="/",
        )
        await until(self._ready, 30, "PostgreSQL to start", 0.05, self.child.tail)

    def _ready(self) -> bool:
        try:
            lines = (self.directory / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) > 7 and lines[7].strip() == "ready"

    async def kill9(self):
        """SIGKILL, as the kernel's OOM killer does; the files stay as after a crash."""
        await self.child.kill9()

    async def close(self):
        self.child.send(signal.SIGQUIT)
        await self.child.stop()
