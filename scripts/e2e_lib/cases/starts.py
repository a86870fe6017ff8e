"""Startup, shutdown, health endpoints and error messages of the bridge."""

import asyncio
import json
import re
import secrets
import signal

from ..harness import Harness, expect
from ..processes import Timeout, until
from . import case


async def expect_failure(h: Harness, pattern: str, *arguments, **changes):
    """Start the bridge; it must exit with an error and a log line that matches `pattern`."""
    await h.bridge.start(*arguments, **changes)
    code = await h.bridge.child.wait(45)
    output = h.bridge.child.output()
    expect(code not in (0, 101) and code > 0, f"the bridge exited with code {code}\n{h.bridge.tail()}")
    expect(
        any(re.search(pattern, line, re.IGNORECASE) for line in output.splitlines()),
        f"no log line matches {pattern!r}\n{h.bridge.tail()}",
    )
    expect(len(output.splitlines()) <= 40, "more than 40 log lines")
    h.check_outputs()


@case()
async def sigterm(h: Harness):
    """SIGTERM stops the bridge with code 0, also while the webhook hangs; nothing is lost."""
    await h.set_up()
    await h.send(3, "before")
    await h.until_delivered()
    for mode in ("ok", "hang"):
        await h.bridge.ready()
        h.sink.mode, refused = mode, h.sink.refused
        await h.send(2, f"at {mode}")
        if mode != "ok":
            await until(lambda: h.sink.refused > refused, 30, "a request to hang", detail=h.bridge.tail)
        h.bridge.child.send(signal.SIGTERM)
        code = await h.bridge.child.wait(15)
        expect(code == 0, f"the bridge exited with code {code}\n{h.bridge.tail()}")
        h.sink.mode = "ok"
        await h.bridge.start()
    await h.until_delivered()


@case()
async def one_device(h: Harness):
    """Restarts reuse the access token: one device, one login, after SIGTERM and SIGKILL."""
    await h.set_up()
    await h.send(1, "the first")
    await h.until_delivered()
    devices, logins = await h.synapse.devices(h.bot), h.synapse.logins(h.bot)
    expect(len(devices) == 1 and len(logins) == 1, f"devices {devices}, tokens {logins}")
    for n, number in enumerate([signal.SIGKILL, signal.SIGTERM, signal.SIGKILL]):
        h.bridge.child.send(number)
        await h.bridge.child.wait(15)
        await h.bridge.start()
        await h.send(1, f"after exit {n}")
        await h.until_delivered()
    expect(await h.synapse.devices(h.bot) == devices, "the bridge has created another device")
    expect(h.synapse.logins(h.bot) == logins, "the bridge has logged in again")


@case()
async def killed_at_first_start(h: Harness):
    """Killed at various times of the first start: only one device is created."""
    for delay in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 1.6, 2.0, 2.5):
        await h.bridge.start()
        try:
            code = await h.bridge.child.wait(delay)
            expect(False, f"the bridge exited with code {code}\n{h.bridge.tail()}")
        except Timeout:
            await h.bridge.kill9()
    await h.set_up()
    await h.send(3, "after all that")
    await h.until_delivered()
    devices = await h.synapse.devices(h.bot)
    expect(len(devices) == 1, f"{len(devices)} devices instead of 1")


@case()
async def killed_at_login(h: Harness):
    """Killed after the homeserver has processed the login, before the bridge has stored it."""
    await h.bridge.start()
    await until(lambda: h.synapse.logins(h.bot), 60, "the login", 0.001, h.bridge.tail)
    await h.bridge.kill9()
    await h.set_up()
    await h.send(3, "after all that")
    await h.until_delivered()
    devices = await h.synapse.devices(h.bot)
    expect(len(devices) == 1, f"{len(devices)} devices instead of 1")


@case(long=True)
async def health(h: Harness):
    """/healthz, /readyz and /metrics work; not ready while the homeserver is unavailable."""
    await h.set_up()
    await h.bridge.ready()
    expect(await h.bridge.status("/healthz") == 200, "/healthz does not respond with 200")
    await h.send(3, "counted")
    await h.until_delivered()

    async def counted():
        return "3" in re.findall(r"^[^#\s]*delivered\S*\s+(\d+)", await h.bridge.metrics(), re.M)

    # The webhook has the last message before the bridge has its answer.
    await until(counted, 10, "/metrics to count 3 delivered messages")
    await h.synapse.stop()
    try:
        for _ in range(90):
            if (status := await h.bridge.status("/readyz")) != 200:
                break
            await asyncio.sleep(1)
        expect(status not in (0, 200), f"/readyz responds with {status} without a homeserver")
        expect(await h.bridge.status("/healthz") == 200, "/healthz fails without a homeserver")
    finally:
        await h.synapse.start()
    await h.bridge.ready(120)


@case()
async def wrong_password(h: Harness):
    """A wrong password: a log line, a non-zero exit code, and no device."""
    await expect_failure(h, "password", MATRIX_PASSWORD="wrong-" + secrets.token_hex(4))
    expect(not await h.synapse.devices(h.bot), "a device was created")


@case()
async def wrong_passphrase(h: Harness):
    """A wrong or missing passphrase is refused, and the right one still works."""
    await h.set_up()
    await h.send(1, "before")
    await h.until_delivered()
    await h.bridge.child.stop()
    await expect_failure(h, "passphrase", STORE_PASSPHRASE="wrong-" + secrets.token_hex(4))
    await expect_failure(h, "passphrase|encrypted", STORE_PASSPHRASE=None)
    await h.bridge.start()
    await h.send(1, "after")
    await h.until_delivered()


@case()
async def revoked_token(h: Harness):
    """An access token that is revoked while the bridge runs, and used for another start."""
    login = await h.synapse.login(h.bot, h.passwords[h.bot])
    # The bridge retries, because the account may be locked; the default is ten minutes.
    token = {
        "MATRIX_PASSWORD": None, "MATRIX_ACCESS_TOKEN": login["access_token"],
        "BRIDGE_RETRY_TIMEOUT": "3",
    }
    await h.set_up(**token)
    await h.send(3, "with the token")
    await h.until_delivered()
    await h.synapse.logout(login["access_token"])
    code = await h.bridge.child.wait(60)
    expect(code > 0, f"the bridge exited with code {code}\n{h.bridge.tail()}")
    expect("token" in h.bridge.child.output().lower(), f"'token' is not in the output\n{h.bridge.tail()}")
    await expect_failure(h, "token", **token)


@case(long=True)
async def expiring_token(h: Harness):
    """Tokens that expire after seconds are refreshed, also after an outage of the bridge, without a password."""
    configuration = h.synapse.directory / "homeserver.yaml"
    before = configuration.read_text()
    changed = {**json.loads(before), "refreshable_access_token_lifetime": "8s"}
    refreshed = lambda: h.bridge.child.output().count("the access token was refreshed")
    await h.synapse.stop()
    configuration.write_text(json.dumps(changed))
    await h.synapse.start()
    try:
        await h.set_up()
        for n in range(6):
            await h.send(1, f"while tokens expire: {n}")
            await asyncio.sleep(3)
        await h.until_delivered()
        expect(refreshed() >= 2, f"refreshed {refreshed()} times\n{h.bridge.tail()}")
        runs = h.bridge.child.output().count("forwarding messages")
        expect(runs == 1, f"the bridge has begun {runs} runs\n{h.bridge.tail()}")
        await h.bridge.kill9()
        await h.send(2, "while it was down")
        await asyncio.sleep(10)
        await h.bridge.start(MATRIX_PASSWORD=None)
        await h.until_delivered()
        expect(len(await h.synapse.devices(h.bot)) == 1, "the bridge has created another device")
    finally:
        await h.synapse.stop()
        configuration.write_text(before)
        await h.synapse.start()


@case()
async def malformed(h: Harness):
    """Malformed and missing settings are reported by name."""
    await expect_failure(h, "homeserver", MATRIX_HOMESERVER="not a url")
    await expect_failure(h, "homeserver", MATRIX_HOMESERVER="ftp://127.0.0.1")
    await expect_failure(h, "webhook", WEBHOOK_URL="127.0.0.1/hook")
    await expect_failure(h, "database", DATABASE_URL="mysql://root@127.0.0.1/x")
    await expect_failure(h, "webhook.url", WEBHOOK_URL=None)
    await expect_failure(h, "user", MATRIX_USER="@:nowhere:")
    await expect_failure(h, "password|token", MATRIX_PASSWORD=None)
    await expect_failure(h, "database_url.*--embedded-postgres", BRIDGE_EMBEDDED_POSTGRES=None, DATABASE_URL=None)
    await expect_failure(h, "passphrase.*--plain", STORE_PASSPHRASE=None)
