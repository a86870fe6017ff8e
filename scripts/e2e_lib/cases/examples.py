"""The programs of examples/*.rs, killed between receiving a message and handling it."""

from .. import operations
from ..processes import until
from ..world import World, expect
from . import case

# More than the pipe holds that nobody reads.
LONG = "x" * 6000


def handled_once(w: World, again: int):
    """Nothing is handled twice but what was in hand at a kill."""
    handled = w.bridge.handled()
    repeated = len(handled) - len(set(handled))
    expect(repeated <= again, f"{repeated} messages were handled again, not {again} at most")


async def killed_while_handling(w: World):
    """Up, two messages in hand at a kill, thirty more while it is dead."""
    await w.up(unread=True)
    in_hand = await w.send(2, f"in hand {LONG}")
    await w.bridge.hangs()
    await w.bridge.kill9()
    dead = await w.send(30, "while it was dead")
    await w.bridge.start()
    await w.bridge.has_handled(in_hand + dead)
    await w.bridge.has_handled(await w.send(3, "after the start"))
    handled_once(w, 0)


@case(example="outbox_bot")
async def example_outbox_bot(w: World):
    """examples/outbox_bot.rs: messages in hand at a kill, and those sent while it was dead, are handled."""
    await killed_while_handling(w)


@case(example="client_bot")
async def example_client_bot(w: World):
    """examples/client_bot.rs: the same."""
    await killed_while_handling(w)


@case(example="webhook_minimal")
async def example_webhook_minimal(w: World):
    """examples/webhook_minimal.rs: the same, with a webhook."""
    await w.up()
    await w.send(2, "before")
    await w.arrived()
    w.sink.mode = "hang"
    await w.send(2, "in hand")
    await until(lambda: w.sink.refused, 60, "a request", detail=w.bridge.tail)
    await w.bridge.kill9()
    await w.send(30, "while it was dead")
    w.sink.mode = "ok"
    await w.bridge.start()
    await w.arrived()
    expect(w.sink.duplicates == 0, f"{w.sink.duplicates} came twice")


@case(example="client_bot")
async def example_outages(w: World):
    """examples/client_bot.rs: the homeserver is away, then PostgreSQL for longer than the retries."""
    said = lambda words, times: w.bridge.child.output().count(words) >= times
    await w.up()
    await w.bridge.has_handled(await w.send(1, "before"))
    await w.synapse.stop()
    await until(lambda: said("starting again", 1), 60, "the failed sync", detail=w.bridge.tail)
    await w.synapse.start()
    await w.bridge.has_handled(await w.send(1, "after the homeserver's restart"))
    failures = w.bridge.child.output().count("starting again")
    await w.bridge.postgres.child.stop()
    sent = await w.send(1, "while PostgreSQL is away")
    # The store has retried in vain, and cannot be reopened.
    await until(lambda: said("starting again", failures + 2), 90, "the store to fail", detail=w.bridge.tail)
    await w.bridge.postgres.start()
    await w.bridge.has_handled(sent)
    handled_once(w, 1)


@case(example="client_bot")
async def example_logged_out(w: World):
    """examples/client_bot.rs: its device is deleted; it ends, and goes on as a new one."""
    await w.up()
    before = await w.send(2, "before")
    await w.bridge.has_handled(before)
    await w.synapse.delete_device(w.bot, "BOT1")
    code = await w.bridge.child.wait(60)
    expect(code > 0 and "M_UNKNOWN_TOKEN" in w.bridge.child.output(), w.bridge.tail())
    # A new device id alone is refused.
    await w.bridge.start(MATRIX_DEVICE_ID="BOT2")
    mismatch = lambda: "doesn't match the account" in w.bridge.child.output()
    await until(mismatch, 60, "the refusal of another device", detail=w.bridge.tail)
    await w.bridge.kill9()
    w.bridge.sql(operations.new_device("bot"))
    await w.bridge.start(MATRIX_DEVICE_ID="BOT2")
    await received_by_new_device(w)


async def received_by_new_device(w: World):
    """Alice learns of the new device, and what she sends from then on is handled."""
    await until(lambda: has_keys(w, "BOT2"), 60, "the new device's keys", 0.3, w.bridge.tail)
    await w.alice.sync()
    w.alice.rotate(w.room)
    await w.bridge.has_handled(await w.send(3, "to the new device"))


async def has_keys(w: World, device: str) -> bool:
    w.bridge.alive()
    return device in await w.synapse.device_keys(w.bot, w.alice.client.access_token)


@case(example="client_bot")
async def example_old_backup(w: World):
    """docs/operations.md, "Backup and restore" and "Rollback detection", with one role."""
    await old_backup(w, owner="bot", bot="bot", roles="CREATE ROLE bot LOGIN; CREATE DATABASE bots OWNER bot")


@case(example="client_bot")
async def example_old_backup_two_roles(w: World):
    """The same with the careful roles of "Roles and grants"."""
    await old_backup(w, "matrix_sdk_owner", "matrix_sdk_bot", "CREATE DATABASE bots")


async def old_backup(w: World, owner: str, bot: str, roles: str):
    def url(role: str, database: str) -> str:
        return w.bridge.postgres.url_of(role, database)

    await w.bridge.postgres.start()
    for statement in roles.split("; "):
        w.bridge.sql(statement)
    if owner != bot:
        setup, after_migration = operations.blocks("Roles and grants", "sql")
        w.bridge.sql(setup, "bots")
        # The owner migrates.
        await w.bridge.start(DATABASE_URL=url(owner, "bots"))
        await until(lambda: w.synapse.logins(w.bot), 60, "the login", detail=w.bridge.tail)
        await w.bridge.child.stop()
        w.bridge.sql(after_migration, "bots")
    await w.up(DATABASE_URL=url(bot, "bots"))
    await w.bridge.has_handled(await w.send(2, "before the dump"))

    dump, restore = operations.blocks("Backup and restore", "sh")
    (create,) = operations.blocks("Backup and restore", "sql")
    if owner != bot:
        said = w.bridge.shell(dump, OWNER_URL=url(bot, "bots"), fails=True)
        expect("permission denied" in said, f"pg_dump as the bot's role: {said}")
    w.bridge.shell(dump, OWNER_URL=url(owner, "bots"))
    after = await w.send(2, "after the dump")
    await w.bridge.has_handled(after)
    await w.bridge.kill9()
    # CREATE DATABASE wants to be alone.
    for statement in create.replace("matrix_sdk_owner", owner).split(";")[:-1]:
        w.bridge.sql(statement)
    w.bridge.shell(restore, RESTORED_OWNER_URL=url(owner, "bots_restored"))
    await w.synapse.delete_device(w.bot, "BOT1")
    w.bridge.sql(operations.new_device("bot"), "bots_restored")
    await w.bridge.start(DATABASE_URL=url(bot, "bots_restored"), MATRIX_DEVICE_ID="BOT2")
    await received_by_new_device(w)
    # Their key came before the dump, and is still there.
    handled = w.bridge.handled()
    expect(all(handled.count(message.body) == 2 for message in after), f"handled: {handled}")
