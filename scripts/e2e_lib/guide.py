"""`scripts/check-guide`: runs the commands of docs/bridge.md as they are written, with a real Synapse."""

import asyncio
import ipaddress
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

from .bridge import ROOT
from .processes import Scratch, until
from .sender import Sender
from .sink import Sink
from .synapse import SERVER_NAME, Synapse

# Commands that are not run, and why.
SKIPPED = {
    "apt-get": "this system's packages are used",
    "docker compose build --pull": "it fetches newer bases from registries",
}


def blocks(section: str) -> list[str]:
    """The commands of a section, without the indentation of a list."""
    parts = (ROOT / "docs" / "bridge.md").read_text().split("\n## ")
    (part,) = [part for part in parts if part.startswith(section + "\n")]
    found, block = [], None
    for line in part.splitlines():
        if line.strip() == "```sh":
            block, indent = [], len(line) - len(line.lstrip())
        elif line.strip() == "```" and block is not None:
            found.append("\n".join(block))
            block = None
        elif block is not None:
            block.append(line[indent:])
    return found


def print_not_tested():
    """The commands for deployments without containers, and for Kubernetes."""
    for block in blocks("With systemd"):
        for line in block.replace("\\\n", "").splitlines():
            print(f"NOT TESTED {line}: this needs systemd as process 1")
    manifests = (ROOT / "examples/webhook_bridge/deploy/kubernetes.yaml").read_text()
    for line in re.findall(r"^#  +(\S.*)$", manifests.replace("\\\n#", ""), re.M):
        print(f"NOT TESTED {line}: there is no cluster")


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


class Server:
    """The empty server of the guide: a directory, and the Docker daemon of this system."""

    def __init__(self, scratch: Path, password: str):
        self.directory, self.password = scratch, password
        self.env = {**os.environ, "COMPOSE_PROJECT_NAME": f"guide-{os.getpid()}"}
        images = docker("images", "--format", "{{.Repository}}").split()
        self.built = {"webhook-bridge", "webhook-bridge-postgres"} <= set(images)

    async def run(self, block: str):
        lines = []
        for line in block.splitlines():
            reason = next((why for start, why in SKIPPED.items() if line.startswith(start)), None)
            if reason:
                print(f"NOT TESTED {line}: {reason}")
            elif line.startswith("git clone "):
                lines.append(f"git clone --quiet --depth 1 file://{ROOT} matrix-sdk-postgres  # instead of: {line}")
            elif line == "git pull":
                lines.append("git pull --quiet")
            elif self.built and " --build" in line:
                lines.append(line.replace(" --build", "") + "  # images of these names exist")
            else:
                lines.append(line)
        print("\n".join(f"  $ {line}" for line in lines), flush=True)
        script = "\n".join([*lines, 'pwd >"$GUIDE_PWD"'])
        after = self.directory / "pwd"
        process = await asyncio.create_subprocess_exec(
            "bash", "-euo", "pipefail", "-c", script, cwd=self.directory, stdin=subprocess.PIPE,
            env={**self.env, "GUIDE_PWD": str(after)},
        )
        await process.communicate(f"{self.password}\n".encode())
        if process.returncode:
            raise SystemExit(f"✗ the commands above ended with {process.returncode}")
        # A block continues in the directory where the one before it ended.
        new = Path(after.read_text().strip())
        after.unlink()
        self.directory = new

    async def section(self, name: str, *, only: slice = slice(None)):
        print(f"== {name}")
        for block in blocks(name)[only]:
            await self.run(block)

    def edit_settings(self, changes: dict[str, str]):
        file = self.directory / ".env"
        lines = file.read_text().splitlines()
        file.write_text("\n".join(
            next((f"{name}={value}" for name, value in changes.items() if line.startswith(f"{name}=")), line)
            for line in lines
        ) + "\n")


async def forward(address: str, port: int):
    """Lets containers reach a port of the loopback interface, at the same port of the bridge network."""

    async def copy(reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def connected(reader, writer):
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, to_writer), copy(to_reader, writer))

    return await asyncio.start_server(connected, address, port)


async def main():
    # This system's address in the default network of containers.
    network = docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Subnet}}")
    gateway = str(ipaddress.ip_network(network)[1])
    scratch, sink = Scratch(), Sink()
    synapse = Synapse(scratch.path / "synapse", ROOT / "target" / "e2e" / "logs" / "synapse.log")
    server = alice = None
    try:
        await synapse.start()
        await sink.open()
        passwords = {name: secrets.token_hex(8) for name in ("bot", "meta_1")}
        for name, password in passwords.items():
            await synapse.register(name, password)
        homeserver = synapse.url.replace("127.0.0.1", gateway)
        forwards = [await forward(gateway, int(synapse.url.rsplit(":", 1)[1])), await forward(gateway, sink.port)]
        bot = f"@bot:{SERVER_NAME}"
        # Named as a ghost, but with a device of its own.
        alice = await Sender.login(synapse, f"@meta_1:{SERVER_NAME}", passwords["meta_1"], scratch.path / "meta_1", "phone")

        (scratch.path / "server").mkdir()
        server = Server(scratch.path / "server", passwords["bot"])
        await server.section("Before you begin")
        identity = server.directory / "identity.txt"
        await server.section("Install", only=slice(0, 1))
        server.edit_settings({
            "MATRIX_HOMESERVER": homeserver, "MATRIX_USER": bot,
            "WEBHOOK_URL": sink.url.replace("127.0.0.1", gateway),
            "BACKUP_RECIPIENT": subprocess.check_output(["age-keygen", "-y", identity], text=True).strip(),
        })
        await server.section("Install", only=slice(1, None))
        sink.token = (server.directory / "secrets/webhook_token").read_text().strip()
        await server.section("Start")
        room = await alice.create_room("guide", [bot])
        await until(lambda: alice.joined(room, bot), 60, "the bot to join")

        async def is_delivered(what: str):
            await alice.sync()
            alice.rotate(room)
            sent = await alice.send(room, what)
            await until(lambda: sent.event_id in [d.event_id for d in sink.delivered], 60, f"the message {what!r}")
            labels = {delivery.message.get("label") for delivery in sink.delivered}
            if labels != {"meta"}:
                raise SystemExit(f"✗ the labels are {labels}")
            print(f"✓ delivered: {what}")

        await is_delivered("after the start")
        await server.section("In front of mautrix-meta")
        await server.section("Day by day")
        await is_delivered("after new passwords")
        (server.directory / "identity.txt").write_text(identity.read_text())
        await server.section("Restore")
        await server.run("curl --fail --silent --retry 30 --retry-delay 2 --retry-all-errors http://127.0.0.1:9090/readyz")
        await is_delivered("after the restore")
        if sink.problems:
            raise SystemExit(f"✗ {sink.problems[0]}")
        print_not_tested()
        for one in forwards:
            one.close()
    finally:
        if server and (server.directory / "compose.yaml").exists():
            subprocess.run(["docker", "compose", "down", "--volumes"], cwd=server.directory, env=server.env, capture_output=True)
        if alice:
            await alice.close()
        await sink.close()
        await synapse.close()
        scratch.remove()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
