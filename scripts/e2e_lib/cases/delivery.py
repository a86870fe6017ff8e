"""Labels, signatures, the API and its attachments, with messages and media of a real homeserver."""

import hashlib
import hmac

import aiohttp

from ..harness import Harness, expect
from ..processes import free_port, until
from ..sender import encrypted_file
from . import case

TOKEN = "a token for the tests only"


def label_of_alice(h: Harness) -> str:
    """A labels file: rooms that Alice invited the bot to have a label."""
    h.directory.mkdir(parents=True, exist_ok=True)
    file = h.directory / "labels.toml"
    file.write_text(f'[[label]]\nname = "alice"\ninviters = ["{h.alice_id}"]\n')
    return str(file)


@case()
async def labels_and_signatures(h: Harness):
    """A room has the label of its inviter, also after a restart, and deliveries are signed."""
    settings = {"BRIDGE_LABELS_FILE": label_of_alice(h), "WEBHOOK_SECRET": "a secret for the tests only"}
    await h.set_up(**settings)
    await h.send(2, "labelled")
    await h.until_delivered()
    await h.bridge.kill9()
    await h.bridge.start(**settings)
    await h.send(2, "labelled after a restart")
    await h.until_delivered()
    for delivery in h.sink.delivered:
        expect(delivery.message.get("label") == "alice", f"labelled {delivery.message.get('label')}")
        signed = delivery.headers["X-Webhook-Bridge-Timestamp"].encode() + b"." + delivery.raw
        digest = hmac.new(settings["WEBHOOK_SECRET"].encode(), signed, hashlib.sha256).hexdigest()
        given = delivery.headers["X-Webhook-Bridge-Signature-256"]
        expect(given == f"sha256={digest}", f"signed with {given}")


@case()
async def api_and_attachments(h: Harness):
    """The API has the last messages, and decrypts an attachment that the homeserver only gives out
    with a token."""
    port = free_port()
    await h.set_up(
        BRIDGE_LABELS_FILE=label_of_alice(h), BRIDGE_ATTACHMENTS="download",
        BRIDGE_API_TOKEN=TOKEN, BRIDGE_API_LISTEN=str(port),
    )
    sent = await h.send(3, "for the API")
    await h.until_delivered()
    file = b"\x89PNG the content of a file \x00\xff" * 1000
    content = await encrypted_file(h.alice, "cat.png", "image/png", file)
    await h.alice.send(h.room, "cat.png", content)
    described = lambda: [d for d in h.sink.delivered if "attachment" in d.message]
    await until(described, 60, "the attachment to be described", detail=h.bridge.tail)
    delivery = described()[0]
    h.sink.delivered.remove(delivery)
    expect(content["file"]["key"]["k"] not in str(delivery.message), "the key is in the document")
    attachment = delivery.message["attachment"]
    expect(attachment["encrypted"] and attachment["size"] == len(file), f"described as {attachment}")
    url = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as http:
        async with http.get(url + attachment["path"]) as answer:
            expect(await answer.read() == file, f"the attachment is another one: {answer.status}")
        for target in ("alice", h.room):
            async with http.get(f"{url}/api/v1/messages/{target}") as answer:
                messages = (await answer.json())["messages"]
            bodies = [message["body"] for message in messages]
            expect(bodies == [*(message.body for message in sent), "cat.png"], f"{target}: {bodies}")
            expect(messages[-1] == delivery.message, "it is not the document of the webhook")
    async with aiohttp.ClientSession() as http, http.get(url + attachment["path"]) as answer:
        expect(answer.status == 401, f"without a token: {answer.status}")
