"""PostgreSQL for tests: the server that runs, or one that is started for them.

`LLAMA_DEPLOY_TEST_POSTGRES` names a server whose databases may be made and dropped; without, one on the default port is
taken where it lets us in, and else one is started in a temporary folder, from Debian's packages. Nothing is skipped:
where there is no server and no program, the tests fail and say what to install.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from secrets import token_hex

import asyncpg

from tests.support import DEADLINE_S
from tests.support.ports import free_port

VARIABLE = "LLAMA_DEPLOY_TEST_POSTGRES"
_CANDIDATES = ("postgresql://postgres@127.0.0.1:5432/postgres", "postgresql://127.0.0.1:5432/postgres")


def _programs() -> Path:
    """The newest of the installed servers."""
    on_path = shutil.which("initdb")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    program = found[-1] if found else Path(on_path).resolve() if on_path else None
    assert program is not None, f"no PostgreSQL: run `make servers`, or name a server with {VARIABLE}"
    return program.parent


class PostgresServer:
    """A server of our own, which a test may stop, kill and start again.

    `host` is where it listens, `inside` what stands before its command so that it runs in a part of a network. With
    `standby_of` it is the synchronous standby of a running server: what is committed is on both.
    """

    def __init__(
        self, host: str = "127.0.0.1", inside: Sequence[str] = (), *, standby_of: PostgresServer | None = None
    ) -> None:
        self.host = host
        self._inside = list(inside)
        self._folder = Path(tempfile.mkdtemp(prefix="llama-deploy-pg-"))
        self._programs = _programs()
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._user = None
        if os.geteuid() == 0:  # the server refuses to run as root
            self._user = next(name for name in ("postgres", "nobody") if _exists(name))
            shutil.chown(self._folder, self._user)
        if standby_of is not None:
            self._run("pg_basebackup", "-d", standby_of.url, "-D", str(self._data), "-R", "-c", "fast", "--no-sync")
            return
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        if host != "127.0.0.1":
            with (self._data / "pg_hba.conf").open("a") as file:
                file.write("host all all samenet trust\nhost all all 198.18.0.0/15 trust\n")

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def pid(self) -> int:
        """The process that all of its others are children of, while it runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        return self.url_of(f"{self.host}:{self.port}")

    def url_of(self, address: str) -> str:
        """Its URL at another address, as behind a proxy."""
        return f"postgresql://postgres@{address}/postgres"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, user=self._user, extra_groups=None, cwd=self._folder
        )

    def start(self) -> None:
        """Start it; it may take a moment until it lets anybody in."""
        options = {"port": self.port, "listen_addresses": self.host, "unix_socket_directories": str(self._folder)}
        arguments = [f"--{name}={value}" for name, value in options.items()]
        with (self._folder / "log").open("ab") as log:
            command = [str(self._programs / "postgres"), "-D", str(self._data), *arguments]
            user = self._user
            if self._inside and user is not None:  # what stands before takes rights that the user has not
                command = [*self._inside, "setpriv", f"--reuid={user}", "--clear-groups", *command]
                user = None
            self._process = subprocess.Popen(command, stdout=log, stderr=log, user=user, cwd=self._folder)

    def stop(self, how: int = signal.SIGINT) -> None:
        """Stop it: SIGINT cuts every connection and ends clean, SIGQUIT is a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(DEADLINE_S)
            self._process = None

    async def started(self) -> None:
        """Start it, and wait until it lets people in."""
        self.start()
        await self.lets_people_in()

    async def lets_people_in(self) -> None:
        """Wait until it does."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                with contextlib.suppress(OSError, asyncpg.PostgresError):
                    connection = await asyncpg.connect(self.url)
                    await connection.close()
                    return
                await asyncio.sleep(0.05)

    def promote(self) -> None:
        """Let a standby be the one that is written, from now on."""
        self._run("pg_ctl", "promote", "-D", str(self._data), "-w")

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


async def _lets_us_in(url: str) -> bool:
    try:
        connection = await asyncpg.connect(url, timeout=DEADLINE_S)
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return False
    await connection.close()
    return True


@contextlib.contextmanager
def server_url() -> Iterator[str]:
    """The URL of a server that runs, for as long as it is needed."""
    given = os.environ.get(VARIABLE)
    for url in [given] if given else _CANDIDATES:
        if asyncio.run(_lets_us_in(url)):
            yield url
            return
    assert not given, f"{VARIABLE} names a server that does not let us in"
    server = PostgresServer()
    try:
        asyncio.run(server.started())
        yield server.url
    finally:
        server.remove()


@contextlib.contextmanager
def database_url() -> Iterator[str]:
    """The URL of an empty database of its own, which is dropped afterwards."""
    with server_url() as url:
        name = f"llama_deploy_test_{token_hex(4)}"
        asyncio.run(execute(url, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'"))
        try:
            yield f"{url.rpartition('/')[0]}/{name}"
        finally:
            asyncio.run(execute(url, f"DROP DATABASE {name} WITH (FORCE)"))


async def execute(url: str, statement: str) -> None:
    """Run one statement."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


_EMPTY = """
DO $$
DECLARE name text;
BEGIN
    FOR name IN SELECT c.oid::regclass::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace
        WHERE nspname = '{schema}' AND relkind IN ('r', 'p') AND NOT relispartition
        AND relname NOT IN ('meta', 'shards', 'partitions')
    LOOP
        EXECUTE 'DELETE FROM ' || name;
    END LOOP;
    UPDATE {schema}.shards SET owner = '';
    INSERT INTO {schema}.writers (owner) VALUES ('');
END $$
"""


async def empty(url: str, schema: str) -> None:
    """Take everything out of a store that nobody has open; making a new one takes ten times as long."""
    connection = await asyncpg.connect(url)
    try:
        if await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", f"{schema}.meta"):
            await connection.execute(_EMPTY.format(schema=schema))
    finally:
        await connection.close()
