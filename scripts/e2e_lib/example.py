"""A program of examples/*.rs, with a PostgreSQL of its own; what it prints is what it has handled."""

import asyncio
import fcntl
import os
import re
import select
import subprocess
from pathlib import Path

from .bridge import Bridge, program
from .postgres import Postgres
from .processes import Timeout, until

# What the bots print: room, sender and body, these two as JSON.
LINE = re.compile(r'^(!\S+) "(@\S+)" "(.*)"$', re.M)


class Example(Bridge):
    def __init__(self, *of_bot, name: str):
        super().__init__(*of_bot)
        self.program = Path(os.environ["E2E_EXAMPLES"]) / name
        self.postgres = Postgres(self.directory / "postgres", self.logs / "postgres.log")
        self.printed = self.logs / "stdout.txt"
        self.printed.unlink(missing_ok=True)
        self.env = {k: v for k, v in self.env.items() if not k.startswith("BRIDGE_")}
        self.env |= {"MATRIX_DEVICE_ID": "BOT1", "DATABASE_URL": self.postgres.url}
        self._unread: int | None = None

    async def start(self, *arguments, unread: bool = False, **changes):
        """With `unread`, its output is not read: it hangs in the middle of handling a message."""
        if not self.postgres.child.running:
            await self.postgres.start()
        if unread:
            self._unread, self._stdout = os.pipe()
            fcntl.fcntl(self._stdout, fcntl.F_SETPIPE_SZ, 4096)
        else:
            self._stdout = os.open(self.printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            await super().start(*arguments, **changes)
        finally:
            os.close(self._stdout)

    async def _run(self, *arguments, env):
        await self.child.start(
            self.program, *arguments, env=env, cwd=self.directory, stdout=self._stdout
        )

    async def hangs(self):
        """Until it has begun to print into a pipe that is not read."""
        begun = lambda: select.select([self._unread], [], [], 0)[0]
        await until(begun, 60, "a message to be handled", detail=self.tail)

    async def kill9(self):
        await super().kill9()
        if self._unread is not None:
            os.close(self._unread)
            self._unread = None

    def handled(self) -> list[str]:
        """The bodies, in the order in which they were handled."""
        text = self.printed.read_text() if self.printed.exists() else ""
        return [body for _, _, body in LINE.findall(text)]

    def figures(self, sent: int) -> str:
        handled = self.handled()
        again = len(handled) - len(set(handled))
        return f"{len(set(handled))} of {sent} handled" + (f", {again} duplicates" if again else "")

    async def has_handled(self, sent, seconds: float = 60):
        bodies = {message.body for message in sent}

        def all_there():
            self.check_running()
            return bodies <= set(self.handled())

        await until(all_there, seconds, f"{len(bodies)} messages to be handled", detail=self.tail)

    async def sql(self, text: str, database: str = "postgres"):
        """Runs SQL as a superuser does in psql."""
        url = self.postgres.url_of("bridge", database)
        await self.shell('psql --quiet --set=ON_ERROR_STOP=1 --command="$SQL" "$URL"', SQL=text, URL=url)

    async def shell(self, script: str, fails: bool = False, **variables: str) -> str:
        """Runs a script in the bot's directory, with PostgreSQL's programs and the operator's tool; returns its output."""
        path = f"{program().parent}:{self.postgres.bin}:{os.environ['PATH']}"
        done = await asyncio.to_thread(
            subprocess.run, ["bash", "-euc", script], env={**os.environ, **variables, "PATH": path},
            cwd=self.directory, capture_output=True, text=True,
        )
        output = done.stdout + done.stderr
        if (done.returncode != 0) != fails:
            raise Timeout(f"{script.strip()} ended with code {done.returncode}: {output}")
        return output

    async def close(self):
        await super().close()
        await self.postgres.close()
