"""Child processes that never outlive this one, temporary directories, and bounded waits."""

import asyncio
import ctypes
import inspect
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

_libc = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1

# Reads a pipe until this process ends, even by kill -9. Then stops the PostgreSQL servers below the
# directory and removes it.
WATCHDOG = """
trap '' INT TERM HUP
cat >/dev/null
find "$1" -name postmaster.pid -exec head -n 1 {} \\; 2>/dev/null | while read -r pid; do
  kill -QUIT "$pid" 2>/dev/null
done
sleep 0.2
rm -rf "$1"
"""


class Timeout(Exception):
    """Something did not happen in time."""


given_ports: set[int] = set()


def free_port() -> int:
    """A port that nothing listens on, and that was not given to anything before, which may be down now."""
    while True:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        if port not in given_ports:
            given_ports.add(port)
            return port


async def until(condition, seconds: float, what: str, every: float = 0.05, detail=None):
    """Wait until `condition()` is true and return its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            more = f"\n{detail()}" if detail else ""
            raise Timeout(f"waited {seconds:.0f} s for {what}{more}")
        await asyncio.sleep(every)


class Scratch:
    """A temporary directory that other users can access, because PostgreSQL does not run as root."""

    def __init__(self):
        self.path = Path(tempfile.mkdtemp(prefix="matrix-e2e-"))
        self.path.chmod(0o755)
        self._watchdog = subprocess.Popen(
            ["sh", "-c", WATCHDOG, "watchdog", str(self.path)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def remove(self):
        self._watchdog.stdin.close()
        try:
            self._watchdog.wait(10)
        except subprocess.TimeoutExpired:
            self._watchdog.kill()
        shutil.rmtree(self.path, ignore_errors=True)


class Child:
    """A process in a group of its own, with its output in a file."""

    def __init__(self, name: str, log: Path):
        self.name, self.log = name, log
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, *command, env=None, cwd=None, user=None, stdout=None):
        def before_exec():
            os.umask(0o022)
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            self.process = await asyncio.create_subprocess_exec(
                *map(str, command),
                env=env,
                cwd=cwd,
                user=user,
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=out,
                start_new_session=True,
                preexec_fn=before_exec,
            )

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    @property
    def code(self) -> int | None:
        return self.process.returncode if self.process else None

    def send(self, number: int):
        if self.running:
            self.process.send_signal(number)

    async def wait(self, seconds: float) -> int:
        """The exit code; `Timeout` with the end of the log if the process does not exit."""
        try:
            return await asyncio.wait_for(self.process.wait(), seconds)
        except asyncio.TimeoutError:
            raise Timeout(f"{self.name} did not exit within {seconds:.0f} s\n{self.tail()}") from None

    async def kill9(self):
        self.send(signal.SIGKILL)
        if self.process:
            await self.process.wait()

    async def stop(self, seconds: float = 10) -> int | None:
        """SIGTERM, then SIGKILL after `seconds`."""
        if not self.running:
            return self.code
        self.send(signal.SIGTERM)
        try:
            return await asyncio.wait_for(self.process.wait(), seconds)
        except asyncio.TimeoutError:
            await self.kill9()
            return self.code

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tail(self, lines: int = 15) -> str:
        text = "\n".join("    | " + line for line in self.output().splitlines()[-lines:])
        return f"  the end of {self.log}:\n{text or '    | (empty)'}"
