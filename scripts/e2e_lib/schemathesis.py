"""`scripts/schemathesis`: generated requests to the API of a bridge that has messages."""

import argparse
import asyncio
import json
import os
import re
import secrets
import sys

from .bridge import ROOT
from .harness import Harness
from .processes import Scratch, free_port
from .sender import encrypted_file
from .synapse import Synapse

LOGS = ROOT / "target" / "e2e" / "logs" / "schemathesis"
MINIMUM = 1000

# Half of the requests are for what there is; the others are generated from the description.
CONFIGURATION = """
[generation]
max-examples = {examples}

[dictionaries.targets]
values = {targets}

[dictionaries.cursors]
values = {cursors}

[dictionaries.attachments]
values = {attachments}

[parameters]
"path.id" = {{ dictionary = "attachments", probability = 0.5 }}
"path.target" = {{ dictionary = "targets", probability = 0.5 }}
"query.after" = {{ dictionary = "cursors", probability = 0.5 }}
"query.before" = {{ dictionary = "cursors", probability = 0.5 }}
"""


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/schemathesis")
    parser.add_argument("--max-examples", type=int, default=600, help="requests per operation and phase")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    return parser.parse_args()


async def main() -> int:
    given = arguments()
    scratch = Scratch()
    synapse = Synapse(scratch.path / "synapse", LOGS / "synapse.log")
    harness = Harness(synapse, scratch.path / "schemathesis", LOGS, "schemathesis")
    try:
        await synapse.start()
        await harness.open()
        return await test(harness, given)
    finally:
        await harness.close()
        await synapse.close()
        scratch.remove()


async def test(h: Harness, given) -> int:
    token, port = secrets.token_hex(16), free_port()
    labels = h.directory / "labels.toml"
    h.directory.mkdir(parents=True, exist_ok=True)
    labels.write_text(f'[[label]]\nname = "alice"\ninviters = ["{h.alice_id}"]\n')
    await h.set_up(
        BRIDGE_API_TOKEN=token, BRIDGE_API_LISTEN=str(port), BRIDGE_API_RATE_LIMIT="100000",
        BRIDGE_LABELS_FILE=str(labels), BRIDGE_REACTIONS="true", BRIDGE_ATTACHMENTS="download",
    )
    sent = await h.send(20, "a message")
    reaction = {"m.relates_to": {"rel_type": "m.annotation", "event_id": sent[0].event_id, "key": "👍"}}
    h.sent.append(await h.alice.send(h.room, "", reaction, "m.reaction"))
    content = await encrypted_file(h.alice, "notes.txt", "text/plain", b"the content of a file")
    h.sent.append(await h.alice.send(h.room, "notes.txt", content))
    await h.until_delivered()
    path = next(d.message["attachment"]["path"] for d in h.sink.delivered if "attachment" in d.message)
    config = h.directory / "schemathesis.toml"
    config.write_text(CONFIGURATION.format(
        examples=given.max_examples, attachments=json.dumps([path.rsplit("/", 1)[1]]), targets=json.dumps(["alice", h.room]),
        cursors=json.dumps([str(n) for n in (0, 1, 5, 10, 20, 10**17)]),
    ))
    url = f"http://127.0.0.1:{port}"
    print(f"seed {given.seed}", flush=True)
    process = await asyncio.create_subprocess_exec(
        os.environ["SCHEMATHESIS"], "--config-file", str(config), "run", f"{url}/api/v1/openapi.json",
        "--url", url, "--header", f"Authorization: Bearer {token}", "--checks", "all",
        "--seed", str(given.seed), "--continue-on-failure", "--no-color",
        cwd=h.directory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )
    output = (await process.communicate())[0].decode(errors="replace").replace(token, "TOKEN")
    (LOGS / "schemathesis.log").write_text(output)
    print(output)
    h.bridge.check_running()
    cases = re.search(r"(\d+) generated", output)
    count = int(cases[1]) if cases else 0
    if count < MINIMUM:
        print(f"✗ {count} cases, fewer than {MINIMUM}")
        return 1
    print(f"{'✓' if process.returncode == 0 else '✗'} {count} cases")
    return process.returncode


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
