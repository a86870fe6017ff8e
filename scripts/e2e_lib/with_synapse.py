"""`scripts/with_synapse COMMAND…`: runs a command with a fresh Synapse."""

import asyncio
import os
import secrets
import sys

from .bridge import ROOT
from .processes import Scratch
from .synapse import SERVER_NAME, Synapse


async def main(command: list[str]) -> int:
    scratch = Scratch()
    synapse = Synapse(scratch.path / "synapse", ROOT / "target" / "e2e" / "logs" / "synapse.log")
    try:
        await synapse.start()
        env = {**os.environ, "SYNAPSE_URL": synapse.url}
        for name in ("alice", "bob"):
            password = secrets.token_hex(8)
            await synapse.register(name, password)
            env[f"SYNAPSE_{name.upper()}"] = f"@{name}:{SERVER_NAME}"
            env[f"SYNAPSE_{name.upper()}_PASSWORD"] = password
        process = await asyncio.create_subprocess_exec(*command, env=env)
        return await process.wait()
    finally:
        await synapse.close()
        scratch.remove()


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main(sys.argv[1:])))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
