"""How the bridge starts, ends, and says what is wrong."""

import asyncio
import re
import secrets
import signal

from ..processes import Timeout, until
from ..world import World, expect
from . import case


async def ends(w: World, words: str, *arguments, **changes):
    """The bridge, started like this, ends with a failure and a line that has one of the words."""
    await w.bridge.start(*arguments, **changes)
    code = await w.bridge.child.wait(45)
    output = w.bridge.child.output()
    expect(code not in (0, 101) and code > 0, f"it ended with code {code}\n{w.bridge.tail()}")
    expect(
        any(re.search(words, line, re.IGNORECASE) for line in output.splitlines()),
        f"no line says anything about {words}\n{w.bridge.tail()}",
    )
    expect(len(output.splitlines()) <= 40, "more than 40 lines before the reason")
    w.check_outputs()


@case()
async def sigterm(w: World):
    """SIGTERM ends it cleanly, with code 0, also while the webhook hangs; nothing is lost."""
    await w.up()
    await w.send(3, "before")
    await w.arrived()
    for mode in ("ok", "hang"):
        await w.bridge.ready()
        w.sink.mode, refused = mode, w.sink.refused
        await w.send(2, f"at {mode}")
        if mode != "ok":
            await until(lambda: w.sink.refused > refused, 30, "a request to hang", detail=w.bridge.tail)
        w.bridge.child.send(signal.SIGTERM)
        code = await w.bridge.child.wait(15)
        expect(code == 0, f"it ended with code {code}\n{w.bridge.tail()}")
        w.sink.mode = "ok"
        await w.bridge.start()
    await w.arrived()


@case()
async def one_device(w: World):
    """Restarts reuse the access token: one device, one login, whatever the ending was."""
    await w.up()
    await w.send(1, "the first")
    await w.arrived()
    devices, logins = await w.synapse.devices(w.bot), w.synapse.logins(w.bot)
    expect(len(devices) == 1 and len(logins) == 1, f"devices {devices}, tokens {logins}")
    for n, number in enumerate([signal.SIGKILL, signal.SIGTERM, signal.SIGKILL]):
        w.bridge.child.send(number)
        await w.bridge.child.wait(15)
        await w.bridge.start()
        await w.send(1, f"after ending {n}")
        await w.arrived()
    expect(await w.synapse.devices(w.bot) == devices, "it has made another device")
    expect(w.synapse.logins(w.bot) == logins, "it has logged in again")


@case()
async def killed_at_first_start(w: World):
    """Killed at many moments of its very first start: still one device in the end."""
    for delay in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 1.6, 2.0, 2.5):
        await w.bridge.start()
        try:
            code = await w.bridge.child.wait(delay)
            expect(False, f"it ended with code {code}\n{w.bridge.tail()}")
        except Timeout:
            await w.bridge.kill9()
    await w.up()
    await w.send(3, "after all that")
    await w.arrived()
    devices = await w.synapse.devices(w.bot)
    expect(len(devices) == 1, f"{len(devices)} devices: orphans were left behind")


@case()
async def killed_at_login(w: World):
    """Killed in the moment the homeserver has made its login, before it can know of it."""
    await w.bridge.start()
    await until(lambda: w.synapse.logins(w.bot), 60, "the login", 0.001, w.bridge.tail)
    await w.bridge.kill9()
    await w.up()
    await w.send(3, "after all that")
    await w.arrived()
    devices = await w.synapse.devices(w.bot)
    expect(len(devices) == 1, f"{len(devices)} devices: an orphan was left behind")


@case()
async def health(w: World):
    """/healthz and /readyz answer, /metrics counts; not ready while the homeserver is away."""
    await w.up()
    await w.bridge.ready()
    expect(await w.bridge.status("/healthz") == 200, "/healthz does not answer 200")
    await w.send(3, "counted")
    await w.arrived()
    numbers = re.findall(r"^[^#\s]*delivered\S*\s+(\d+)", await w.bridge.metrics(), re.M)
    expect("3" in numbers, f"/metrics counts {numbers} as delivered, not 3")
    await w.synapse.stop()
    try:
        for _ in range(90):
            if (status := await w.bridge.status("/readyz")) != 200:
                break
            await asyncio.sleep(1)
        expect(status not in (0, 200), f"/readyz says {status} without a homeserver")
        expect(await w.bridge.status("/healthz") == 200, "/healthz fails without a homeserver")
    finally:
        await w.synapse.start()
    await w.bridge.ready(120)


@case()
async def wrong_password(w: World):
    """A wrong password: one clear line, a code that is not 0, and no device left behind."""
    await ends(w, "password", MATRIX_PASSWORD="wrong-" + secrets.token_hex(4))
    expect(not await w.synapse.devices(w.bot), "a device was left behind")


@case()
async def wrong_passphrase(w: World):
    """A wrong or missing passphrase is refused, and the right one still works."""
    await w.up()
    await w.send(1, "before")
    await w.arrived()
    await w.bridge.child.stop()
    await ends(w, "passphrase", STORE_PASSPHRASE="wrong-" + secrets.token_hex(4))
    await ends(w, "passphrase|encrypted", STORE_PASSPHRASE=None)
    await w.bridge.start()
    await w.send(1, "after")
    await w.arrived()


@case()
async def revoked_token(w: World):
    """An access token that is revoked while the bridge runs, and used again."""
    login = await w.synapse.login(w.bot, w.passwords[w.bot])
    # It may be that the account is locked, so the bridge asks again; here not for ten minutes.
    token = {
        "MATRIX_PASSWORD": None, "MATRIX_ACCESS_TOKEN": login["access_token"],
        "BRIDGE_REFUSAL_WAIT": "3",
    }
    await w.up(**token)
    await w.send(3, "with the token")
    await w.arrived()
    await w.synapse.logout(login["access_token"])
    code = await w.bridge.child.wait(60)
    expect(code > 0, f"it ended with code {code}\n{w.bridge.tail()}")
    expect("token" in w.bridge.child.output().lower(), f"no word of the token\n{w.bridge.tail()}")
    await ends(w, "token", **token)


@case()
async def malformed(w: World):
    """Malformed and missing settings are named."""
    await ends(w, "homeserver", MATRIX_HOMESERVER="not a url")
    await ends(w, "homeserver", MATRIX_HOMESERVER="ftp://127.0.0.1")
    await ends(w, "webhook", WEBHOOK_URL="127.0.0.1/hook")
    await ends(w, "database", DATABASE_URL="mysql://root@127.0.0.1/x")
    await ends(w, "webhook.url", WEBHOOK_URL=None)
    await ends(w, "user", MATRIX_USER="@:nowhere:")
    await ends(w, "password|token", MATRIX_PASSWORD=None)
    await ends(w, "database_url.*--try", BRIDGE_TRY=None, DATABASE_URL=None)
    await ends(w, "passphrase.*--plain", STORE_PASSPHRASE=None)
