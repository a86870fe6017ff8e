"""The programs of examples/*.rs, killed between receiving a message and handling it."""

from .. import operations
from ..processes import until
from ..harness import Harness, expect
from ..sender import checked
from . import case

# More than fits into the pipe.
LONG = "x" * 6000


def handled_once(h: Harness, again: int):
    """Check that nothing is handled twice but what was being handled at a kill, and that the order is right."""
    handled = h.bridge.handled()
    order = [message.body for message in h.sent if message.body in set(handled)]
    expect(list(dict.fromkeys(handled)) == order, f"out of order: {[body[:40] for body in handled]}")
    repeated = len(handled) - len(set(handled))
    expect(repeated <= again, f"{repeated} messages were handled again, not {again} at most")


async def killed_while_handling(h: Harness):
    """Two messages are being handled at a kill, and thirty more come while the bot is down."""
    await h.set_up(unread=True)
    in_hand = await h.send(2, f"in hand {LONG}")
    await h.bridge.hangs()
    await h.bridge.kill9()
    down = await h.send(30, "while it was down")
    await h.bridge.start()
    await h.bridge.has_handled(in_hand + down)
    await h.bridge.has_handled(await h.send(3, "after the start"))
    handled_once(h, 0)


@case(example="outbox_bot")
async def example_outbox_bot(h: Harness):
    """examples/outbox_bot.rs: messages that were being handled at a kill, and those sent while it was down."""
    await killed_while_handling(h)


@case(example="client_bot")
async def example_client_bot(h: Harness):
    """examples/client_bot.rs: the same."""
    await killed_while_handling(h)


@case(example="webhook_minimal")
async def example_webhook_minimal(h: Harness):
    """examples/webhook_minimal.rs: the same, with a webhook."""
    await h.set_up()
    await h.send(2, "before")
    await h.until_delivered()
    h.sink.mode = "hang"
    await h.send(2, "in hand")
    await until(lambda: h.sink.refused, 60, "a request", detail=h.bridge.tail)
    await h.bridge.kill9()
    await h.send(30, "while it was down")
    h.sink.mode = "ok"
    await h.bridge.start()
    await h.until_delivered()
    expect(h.sink.duplicates == 0, f"{h.sink.duplicates} came twice")


@case(example="outbox_bot")
async def example_removed_from_room(h: Harness):
    """examples/outbox_bot.rs: a room gets messages and removes the bot while that is down."""
    await h.set_up()
    await h.bridge.has_handled(await h.send(1, "before"))
    await h.bridge.kill9()
    sent = await h.send(30, "before the removal")
    checked(await h.alice.client.room_kick(h.room, h.bot))
    await h.bridge.start()
    await h.bridge.has_handled(sent)
    handled_once(h, 0)


@case(example="webhook_minimal", long=True)
async def example_new_room(h: Harness):
    """examples/webhook_minimal.rs: a room that the bot has joined gets messages before the next sync."""
    await h.set_up()
    await h.send(1, "before")
    await h.until_delivered()
    await h.bridge.kill9()
    h.sink.mode = "hang"
    await h.send(1, "in hand")
    room = await h.alice.create_room("second", [h.bot])
    h.owners[room] = h.alice
    # It joins, and then it waits for the webhook.
    await h.bridge.start()
    await until(lambda: h.sink.refused, 60, "a request", detail=h.bridge.tail)
    await until(lambda: h.joined(h.alice, room), 60, "the bot to join", 0.1, h.bridge.tail)
    await h.alice.sync()
    await h.send(30, "in the new room", room=room)
    h.sink.mode = "ok"
    await h.until_delivered()


@case(example="client_bot", long=True)
async def example_outages(h: Harness):
    """examples/client_bot.rs: the homeserver is away, then PostgreSQL for longer than the retries."""
    printed = lambda words, times: h.bridge.child.output().count(words) >= times
    await h.set_up()
    await h.bridge.has_handled(await h.send(1, "before"))
    await h.synapse.stop()
    await until(lambda: printed("starting again", 1), 60, "the failed sync", detail=h.bridge.tail)
    await h.synapse.start()
    await h.bridge.has_handled(await h.send(1, "after the homeserver's restart"))
    failures = h.bridge.child.output().count("starting again")
    await h.bridge.postgres.child.stop()
    sent = await h.send(1, "while PostgreSQL is away")
    # The retries of the store have failed, and so has reopening it.
    await until(lambda: printed("starting again", failures + 2), 90, "the store to fail", detail=h.bridge.tail)
    await h.bridge.postgres.start()
    await h.bridge.has_handled(sent)
    handled_once(h, 1)


@case(example="client_bot")
async def example_logged_out(h: Harness):
    """examples/client_bot.rs: its device is deleted; it ends, and continues as a new one."""
    await h.set_up()
    before = await h.send(2, "before")
    await h.bridge.has_handled(before)
    await h.synapse.delete_device(h.bot, "BOT1")
    await ends(h, "M_UNKNOWN_TOKEN")
    # A new device id alone is refused.
    await h.bridge.start(MATRIX_DEVICE_ID="BOT2")
    await ends(h, "doesn't match the account")
    # Neither is a refused password tried again.
    await h.bridge.start(MATRIX_DEVICE_ID="BOT2", MATRIX_PASSWORD="wrong")
    await ends(h, "M_FORBIDDEN")
    await h.bridge.shell(operations.reset_device("bot"), DATABASE_URL=h.bridge.postgres.url)
    await h.bridge.start(MATRIX_DEVICE_ID="BOT2")
    await received_by_new_device(h)


async def ends(h: Harness, reason: str):
    code = await h.bridge.child.wait(60)
    output = h.bridge.child.output()
    expect(code > 0 and reason in output and "starting again" not in output, h.bridge.tail())


async def received_by_new_device(h: Harness):
    """Alice learns of the new device, and what she sends from then on is handled."""
    await until(lambda: has_keys(h, "BOT2"), 60, "the new device's keys", 0.3, h.bridge.tail)
    await h.alice.sync()
    h.alice.rotate(h.room)
    await h.bridge.has_handled(await h.send(3, "to the new device"))


async def has_keys(h: Harness, device: str) -> bool:
    h.bridge.check_running()
    return device in await h.synapse.device_keys(h.bot, h.alice.client.access_token)


@case(example="client_bot")
async def example_old_backup(h: Harness):
    """docs/operations.md, "Backup and restore" and "Rollback detection", with one role."""
    await old_backup(h, owner="bot", bot="bot", roles="CREATE ROLE bot LOGIN; CREATE DATABASE bots OWNER bot")


@case(example="client_bot")
async def example_old_backup_two_roles(h: Harness):
    """The same with the careful roles of "Roles and grants"."""
    await old_backup(h, "matrix_sdk_owner", "matrix_sdk_bot", "CREATE DATABASE bots")


async def old_backup(h: Harness, owner: str, bot: str, roles: str):
    def url(role: str, database: str) -> str:
        return h.bridge.postgres.url_of(role, database)

    await h.bridge.postgres.start()
    for statement in roles.split("; "):
        await h.bridge.sql(statement)
    if owner != bot:
        setup, after_migration = operations.blocks("Roles and grants", "sql")
        await h.bridge.sql(setup, "bots")
        # The owner migrates.
        await h.bridge.start(DATABASE_URL=url(owner, "bots"))
        await until(lambda: h.synapse.logins(h.bot), 60, "the login", detail=h.bridge.tail)
        await h.bridge.child.stop()
        await h.bridge.sql(after_migration, "bots")
    await h.set_up(DATABASE_URL=url(bot, "bots"))
    await h.bridge.has_handled(await h.send(2, "before the dump"))

    dump, restore = operations.blocks("Backup and restore", "sh")
    (create,) = operations.blocks("Backup and restore", "sql")
    if owner != bot:
        output = await h.bridge.shell(dump, OWNER_URL=url(bot, "bots"), fails=True)
        expect("permission denied" in output, f"pg_dump as the bot's role: {output}")
    await h.bridge.shell(dump, OWNER_URL=url(owner, "bots"))
    after = await h.send(2, "after the dump")
    await h.bridge.has_handled(after)
    await h.bridge.kill9()
    # CREATE DATABASE must be a command of its own.
    for statement in create.replace("matrix_sdk_owner", owner).split(";")[:-1]:
        await h.bridge.sql(statement)
    await h.bridge.shell(restore, RESTORED_OWNER_URL=url(owner, "bots_restored"))
    await h.synapse.delete_device(h.bot, "BOT1")
    await h.bridge.shell(operations.reset_device("bot"), DATABASE_URL=url(owner, "bots_restored"))
    await h.bridge.start(DATABASE_URL=url(bot, "bots_restored"), MATRIX_DEVICE_ID="BOT2")
    await received_by_new_device(h)
    # Their key came before the dump, and is still there.
    handled = h.bridge.handled()
    expect(all(handled.count(message.body) == 2 for message in after), f"handled: {handled}")
