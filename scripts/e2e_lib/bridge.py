"""The program under test: started with a clean environment, observed through its endpoints."""

import os
import re
from pathlib import Path

import aiohttp

from .processes import Child, Timeout, free_port, until
from .sink import Sink
from .synapse import Synapse

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = re.compile("^(MATRIX|BRIDGE|WEBHOOK|STORE|PG)[A-Z]*_|^DATABASE_URL$|^PG|^RUST_LOG$")


def program() -> Path:
    """The binary built by `setup`."""
    return Path(os.environ["E2E_BRIDGE"])


class Bridge:
    """One bot: its account, its data directory, and its consecutive processes."""

    def __init__(self, synapse: Synapse, sink: Sink, user_id: str, password: str, directory: Path, logs: Path):
        self.user_id, self.directory, self.logs = user_id, directory, logs
        self.program = program()
        self.runs = 0
        self.child: Child | None = None
        self.listen = free_port()
        self._http: aiohttp.ClientSession | None = None
        self.env = {
            "MATRIX_HOMESERVER": synapse.url,
            "MATRIX_USER": user_id,
            "MATRIX_PASSWORD": password,
            "STORE_PASSPHRASE": "a passphrase for the tests only",
            # Used if a case sets no DATABASE_URL.
            "BRIDGE_EMBEDDED_POSTGRES": "true",
            "WEBHOOK_URL": sink.url,
            "BRIDGE_DATA_DIR": str(directory / "data"),
            "BRIDGE_LISTEN": f"127.0.0.1:{self.listen}",
        }
        if sink.token:
            self.env["WEBHOOK_TOKEN"] = sink.token

    async def start(self, *arguments: str, **changes: str | None):
        """Start a process. `changes` override environment variables for this run; None unsets."""
        assert not (self.child and self.child.running)
        self.directory.mkdir(parents=True, exist_ok=True)
        # Settings of the caller's shell must not leak in.
        env = {k: v for k, v in os.environ.items() if not CONFIGURATION.match(k) or k == "PG_BIN"}
        env.update(self.env)
        for name, value in changes.items():
            env.pop(name, None)
            if value is not None:
                env[name] = value
        self.runs += 1
        self.child = Child("the bridge", self.logs / f"bridge-{self.runs}.log")
        self.child.log.unlink(missing_ok=True)
        if os.environ.get("E2E_VERBOSE"):
            arguments += ("--verbose",)
        await self._run(*arguments, env=env)

    async def _run(self, *arguments, env):
        await self.child.start(self.program, *arguments, env=env, cwd=self.directory)

    async def kill9(self):
        await self.child.kill9()

    async def status(self, path: str) -> int:
        """The status code of /healthz or /readyz; 0 without a response."""
        return (await self._get(path))[0]

    async def metrics(self) -> str:
        return (await self._get("/metrics"))[1]

    async def _get(self, path: str) -> tuple[int, str]:
        self._http = self._http or aiohttp.ClientSession()
        url = f"http://127.0.0.1:{self.listen}{path}"
        try:
            async with self._http.get(url, timeout=aiohttp.ClientTimeout(total=10)) as answer:
                return answer.status, await answer.text()
        except (aiohttp.ClientError, TimeoutError):
            return 0, ""

    async def ready(self, seconds: float = 60):
        async def answers():
            self.check_running()
            return await self.status("/readyz") == 200

        await until(answers, seconds, "the bridge to be ready", 0.1, self.tail)

    def check_running(self):
        if not self.child.running:
            raise Timeout(f"the bridge exited with code {self.child.code}\n{self.tail()}")

    def tail(self) -> str:
        return self.child.tail() if self.child else "  the bridge was never started"

    def outputs(self) -> str:
        """The output of all runs."""
        return "\n".join(p.read_text(errors="replace") for p in sorted(self.logs.glob("bridge-*.log")))

    def postgres_pid(self) -> int | None:
        """The process id of the embedded PostgreSQL in the data directory."""
        for file in self.directory.rglob("postmaster.pid"):
            try:
                return int(file.read_text().splitlines()[0])
            except (OSError, ValueError, IndexError):
                continue
        return None

    async def close(self):
        if self.child:
            await self.child.stop()
        if self._http:
            await self._http.close()
