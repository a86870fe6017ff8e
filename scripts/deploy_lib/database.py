"""init-db.sql, backup.sh and restore.sh on a real PostgreSQL, over TLS as compose.yaml has it."""

import asyncio
import os
import pwd
import signal
import subprocess
import time
from pathlib import Path

from e2e_lib.postgres import Postgres, unprivileged
from e2e_lib.processes import until

from .files import make_secrets
from .report import DEPLOY, ROOT, NotTested, Report, expect, need, run

MARK = "a row that a backup must not show in plain text"


class Server(Postgres):
    """A server with the certificate of make-secrets.sh and with pg_hba.conf. Its superuser is `postgres`."""

    def __init__(self, scratch: Path):
        super().__init__(scratch / "postgres", scratch / "postgres.log")
        self.secrets = make_secrets(scratch / "deploy")
        self.secrets.chmod(0o755)
        self.scratch = scratch
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PG") or name == "PG_BIN"},
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "PGPORT": str(self.port),
            "HOME": str(scratch),
        }
        self.superuser = {**self.env, "PGHOST": str(scratch / "socket"), "PGUSER": "postgres", **{
            f"{role.upper()}_PASSWORD_FILE": str(self.secrets / f"{role}_password")
            for role in ("owner", "bot", "backup")
        }}

    def owned(self, path: Path, mode: int) -> Path:
        """Give a file or directory to the user that runs PostgreSQL."""
        if self.user:
            os.chown(path, pwd.getpwnam(self.user).pw_uid, -1)
        path.chmod(mode)
        return path

    async def start(self):
        for directory in ("socket", "postgres", "backups"):
            (self.scratch / directory).mkdir()
            self.owned(self.scratch / directory, 0o700 if directory == "postgres" else 0o777)
        key = self.scratch / "server.key"
        key.write_bytes((self.secrets / "server.key").read_bytes())
        self.owned(key, 0o600)
        hba = self.scratch / "pg_hba.conf"
        # Here the superuser is not the system's user of that name.
        hba.write_text((DEPLOY / "pg_hba.conf").read_text().replace("peer", "trust"))
        subprocess.run(
            [self.bin / "initdb", "--no-sync", "--encoding=UTF8", "--locale=C", "--username=postgres",
             "--auth=scram-sha-256", "--pwfile", self.secrets / "postgres_password", "--pgdata", self.directory],
            user=self.user, check=True, capture_output=True, cwd="/",
        )
        await self.child.start(
            self.bin / "postgres", "-D", self.directory, "-p", self.port,
            "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.scratch / 'socket'}",
            "-c", "fsync=off", "-c", "ssl=on", "-c", f"ssl_cert_file={self.secrets / 'server.crt'}",
            "-c", f"ssl_key_file={key}", "-c", f"hba_file={hba}", "-c", "log_statement=all",
            user=self.user, cwd="/",
        )
        await until(self._ready, 30, "PostgreSQL to start", 0.05, self.child.tail)

    async def close(self):
        self.child.send(signal.SIGINT)
        await self.child.wait(10)

    def role(self, name: str, **changes) -> dict:
        """The environment of a client with that role."""
        return {
            **self.env, "PGHOST": "localhost", "PGUSER": f"matrix_sdk_{name}", "PGDATABASE": "bridge",
            "PGPASSWORD": (self.secrets / f"{name}_password").read_text().strip(),
            "PGSSLMODE": "verify-full", "PGSSLROOTCERT": str(self.secrets / "ca.crt"), **changes,
        }

    def url_file(self, role: str) -> str:
        """A file with the URL that make-secrets.sh has made, for this server."""
        url = (self.secrets / f"{role}_url").read_text()
        url = url.replace("/run/secrets", str(self.secrets)).replace("@localhost/", f"@localhost:{self.port}/")
        file = self.scratch / f"{role}_url"
        file.write_text(url)
        return str(file)

    def sql(self, env: dict, statement: str, **options) -> str:
        return run("psql", "-Xqtv", "ON_ERROR_STOP=1", "-c", statement, env=env, **options)

    def init(self, fails: bool = False, **changes) -> str:
        env = self.superuser | changes
        return run("psql", "-Xq", "-d", "postgres", "-f", DEPLOY / "init-db.sql", env=env, fails=fails)


def check(report: Report, scratch: Path):
    asyncio.run(_check(report, scratch / "database"))


async def _check(report: Report, scratch: Path):
    scratch.mkdir()
    server = Server(scratch)
    try:
        await server.start()
        report.check("init-db.sql runs, and runs again", init, server)
        report.check("connections: TLS only, roles only to their database", connections, server)
        report.check("the bridge migrates as the owner", migrate, server)
        report.check("the bot changes rows, not the schema nor what was migrated", grants, server)
        report.check("no password is in the server's log", no_password_in_log, server)
        report.check("backup.sh and restore.sh: dump, encrypt, lose the database, restore", backup_and_restore, server)
    finally:
        await server.close()


def init(server: Server):
    said = server.init(fails=True, BOT_PASSWORD_FILE="/dev/null")
    expect("a password is empty" in said, said)
    server.init()
    server.init()


def connections(server: Server):
    for role in ("owner", "bot", "backup"):
        server.sql(server.role(role), "SELECT 1")
    said = server.sql(server.role("bot", PGSSLMODE="disable"), "SELECT 1", fails=True)
    expect("no encryption" in said, said)
    server.sql(server.role("bot", PGDATABASE="postgres"), "SELECT 1", fails=True)
    server.sql(server.role("bot", PGPASSWORD="wrong"), "SELECT 1", fails=True)


def program() -> Path:
    built = os.environ.get("E2E_BRIDGE") or Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/webhook_bridge"
    if not Path(built).exists():
        raise NotTested(f"{built} is missing: cargo build --workspace --all-features --bins")
    return Path(built)


def migrate(server: Server):
    env = server.env | {"DATABASE_URL_FILE": server.url_file("owner")}
    run(program(), "--migrate-only", env=env, cwd=server.scratch)
    server.init()
    for schema in ("matrix_sdk", "webhook_bridge"):
        said = server.sql(server.role("bot"), f"DELETE FROM {schema}.schema_migrations", fails=True)
        expect("permission denied" in said, said)
        server.sql(server.role("bot"), f"SELECT count(*) FROM {schema}.schema_migrations")


def grants(server: Server):
    for schema in ("matrix_sdk", "webhook_bridge"):
        server.sql(server.role("owner"), f"CREATE TABLE {schema}.proof (id bigserial, text text)")
        server.sql(server.role("bot"), f"INSERT INTO {schema}.proof VALUES (1, '{MARK}')")
        for statement in (f"CREATE TABLE {schema}.more ()", f"DROP TABLE {schema}.proof"):
            server.sql(server.role("bot"), statement, fails=True)
        server.sql(server.role("backup"), f"DELETE FROM {schema}.proof", fails=True)


def no_password_in_log(server: Server):
    for file in server.secrets.glob("*_password"):
        expect(file.read_text().strip() not in server.child.output(), f"{file.name} is in the server's log")


def backup_and_restore(server: Server):
    need("age", "apt-get install age")
    dumps, env = server.scratch / "backups", server.role("backup")
    del env["PGPASSWORD"]
    key, other = (_identity(server.scratch / name) for name in ("identity.txt", "other.txt"))
    env |= {
        "BACKUP_DIR": str(dumps), "BACKUP_KEEP": "2", "BACKUP_RECIPIENT": key[1],
        "PGPASSWORD_FILE": str(server.secrets / "backup_password"),
    }
    backup = DEPLOY / "backup.sh"
    run("bash", backup, env=env | {"BACKUP_RECIPIENT": "age1nonsense"}, fails=True)
    run("bash", backup, env=env | {"PGPASSWORD_FILE": str(server.secrets / "bot_password")}, fails=True)
    expect(not list(dumps.glob("*.age")), "a failed backup left a file that looks complete")
    for part in dumps.glob("*.part"):
        part.unlink()
    # More than a restore reads before it begins to write.
    server.sql(server.role("bot"), "INSERT INTO matrix_sdk.proof SELECT n, md5(n::text) FROM generate_series(2, 20000) n")
    for day in ("01", "02"):
        (dumps / f"bridge-202001{day}T000000Z.dump.age").touch()
    before = _contents(server)
    expect(before.count(MARK) == 2, "the rows are not there")
    run("bash", backup, env=env)
    kept = sorted(dumps.iterdir())
    expect([file.name[7:15] for file in kept[:-1]] == ["20200102"], f"kept: {kept}")
    file = kept[-1]
    _daily(dumps, env, file)
    expect(MARK.encode() not in file.read_bytes() and b"matrix_sdk" not in file.read_bytes(), "it is not encrypted")

    def restore(identity: str, **options) -> str:
        return run("bash", DEPLOY / "restore.sh", file, env=server.superuser, input=identity, **options)

    expect("drop it" in restore(key[0], fails=True), "a database in use was restored over")
    run("dropdb", "--force", "bridge", env=server.superuser)
    server.init()
    restore(other[0], fails=True)
    truncated = server.scratch / "truncated.age"
    truncated.write_bytes(file.read_bytes()[:-40])
    run("bash", DEPLOY / "restore.sh", truncated, env=server.superuser, input=key[0], fails=True)
    # Neither of them has left anything behind, or this one would be refused.
    restore(key[0])
    expect(_contents(server) == before, "the restored database differs")
    for schema in ("matrix_sdk", "webhook_bridge"):
        server.sql(server.role("bot"), f"DELETE FROM {schema}.proof")
        server.sql(server.role("bot"), f"DROP TABLE {schema}.proof", fails=True)


def _daily(dumps: Path, env: dict, newest: Path):
    """Restarts of the container make no further backups, and leave alone what another one is writing."""
    partial, old = dumps / "bridge-now.part", dumps / "bridge-then.part"
    for file in (partial, old):
        file.touch()
    for file in dumps.iterdir():
        if file not in (newest, partial):
            os.utime(file, (0, 0))
    before = {file.name for file in dumps.iterdir()} - {old.name}
    after = _until_it_waits(dumps, env)
    expect(after == before, f"before: {before}, after: {after}")
    # Made while the clock was wrong.
    future = dumps / "bridge-21000101T000000Z.dump.age"
    future.touch()
    os.utime(future, (4102444800, 4102444800))
    after = _until_it_waits(dumps, env)
    expect(after == before | {future.name}, f"with a file from the future, before: {before}, after: {after}")
    # The name of a file has the second in which it was made.
    time.sleep(1)
    for with_future in (True, False):
        due = newest.stat().st_mtime - 86400
        os.utime(newest, (due, due))
        remains = {partial.name, newest.name} | ({future.name} if with_future else set())
        after = _until_it_waits(dumps, env)
        made = after - remains
        expect(len(made) == 1 and max(made) > newest.name, f"the backup that is due is not made: {after}")
        expect(after == remains | made, f"not kept: {remains - after}")
        (dumps / made.pop()).unlink()
        future.unlink(missing_ok=True)
    partial.unlink()


def _until_it_waits(dumps: Path, env: dict) -> set[str]:
    """Run the daily backup until it waits for the next one. Returns the names in its directory."""
    bin = dumps.parent / "bin"
    bin.mkdir(exist_ok=True)
    waits = bin / "waits"
    waits.write_text("")
    sleep = bin / "sleep"
    sleep.write_text(f'#!/bin/sh\necho "$1" >>{waits}\nexec {need("sleep", "coreutils")} "$1"\n')
    sleep.chmod(0o755)
    child = subprocess.Popen(
        ["bash", DEPLOY / "backup.sh", "86400"], env=env | {"PATH": f"{bin}:{env['PATH']}"}, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not (waited := waits.read_text().split()) or waited == ["0"]:
            expect(child.poll() is None, f"backup.sh has ended with {child.returncode}")
            expect(time.monotonic() < deadline, f"backup.sh does not wait: {waited}")
            time.sleep(0.05)
        expect(0 < int(waited[-1]) <= 86400, f"it waits for {waited} seconds")
        return {file.name for file in dumps.iterdir()}
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _identity(file: Path) -> tuple[str, str]:
    """The private and the public key of a new pair."""
    run("age-keygen", "-o", file)
    return file.read_text(), run("age-keygen", "-y", file).strip()


def _contents(server: Server) -> str:
    """Everything: rows, owners and grants."""
    dump = run("pg_dump", "bridge", env=server.superuser)
    return "\n".join(line for line in dump.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))
