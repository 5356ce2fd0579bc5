"""Private PostgreSQL servers for tests: made in a directory of their own, reached by a unix socket, ended by their pid.

Root may not run PostgreSQL; then the distribution's user `postgres` does. Durability is off, since no test pulls the
machine's plug: a killed server keeps what it wrote to files.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import psutil
import psycopg
import pytest
from psycopg import sql
from sqlalchemy import URL

from controlplane.state.factory import migrate

NEED_POSTGRESQL = ("LIMIQUANTIX_TESTS_NEED_POSTGRESQL", "LIMIQUANTIX_TESTS_NEED_LIBVIRT")
"""Either set, a test that cannot have PostgreSQL fails instead of being skipped: where everything must be there, as in
CI, its absence is a fault of the set-up."""

OWNER = "limiquantix"
"""Role that owns everything, the server's superuser; nobody is asked for a password on the socket."""

_START_DEADLINE_S = 60.0
_STOP_DEADLINE_S = 60.0
_POLL_S = 0.02
_KEPT_DATABASE_COUNT = 20
"""A database takes 8 MB. Those of tests that ended long ago are dropped."""
_ROOM_BYTES = 4 * 2**30
"""Four test processes have a server each, with that many databases and 256 MB of its log."""

_FAST_BUT_NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}
_SMALL = {"shared_buffers": "32MB", "max_wal_size": "256MB", "jit": "off", "autovacuum": "off"}


def find_programs() -> Path | None:
    """Directory of the newest PostgreSQL server's programs on this machine; None if there is none."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda path: int(path.parent.name))
    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb else None


def require_programs() -> Path:
    """Directory of the server's programs; without them the test is skipped, or fails where they must be there."""
    programs = find_programs()
    if programs is not None:
        return programs
    leave_out("PostgreSQL (package postgresql) is not installed")


def leave_out(reason: str) -> NoReturn:
    """Skip the test, or fail it where one of `NEED_POSTGRESQL` is set."""
    if any(os.environ.get(name) for name in NEED_POSTGRESQL):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(slots=True)
class PostgresqlServer:
    """One cluster in `directory`, which must not exist and is removed by `remove`.

    Start it from the main thread only: it is told to end when the thread that started it does.
    """

    directory: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings of postgresql.conf, over those that make it fast."""
    host_rules: str = "local all all trust\nhost all all all scram-sha-256\n"
    """Text of pg_hba.conf."""
    data_directory: Path | None = None
    """An empty directory for the cluster, by default one below `directory`."""
    namespace: str = ""
    """Name of the network it runs in; "" for ours."""
    _process: subprocess.Popen[bytes] | None = None

    @property
    def log_path(self) -> Path:
        """What the server says."""
        return self.directory / "server.log"

    @property
    def pid(self) -> int:
        """Process id of the postmaster, which must have been started."""
        assert self._process is not None
        return self._process.pid

    def create(self) -> None:
        """Make the cluster."""
        self.directory.mkdir(parents=True)
        data = self.data_directory or self.directory / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        self.data_directory = data
        if (account := _account()) is not None:
            for path in (self.directory, data):
                os.chown(path, account.pw_uid, account.pw_gid)
        made = subprocess.run(
            [*_as_account(), str(require_programs() / "initdb"), "-D", str(data), "-U", OWNER, "-A", "trust", "-N",
             "--no-locale", "-E", "UTF8"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        (data / "pg_hba.conf").write_text(self.host_rules)

    def start(self, **settings: str) -> None:
        """Start the postmaster and wait until it serves."""
        self.start_without_waiting(**settings)
        assert self._process is not None
        deadline = time.monotonic() + _START_DEADLINE_S
        while not self.serves():
            assert self._process.poll() is None, self.log_path.read_text()
            assert time.monotonic() < deadline, self.log_path.read_text()
            time.sleep(_POLL_S)

    def serves(self) -> bool:
        """Whether it takes a connection now."""
        try:
            self.connect("postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def start_without_waiting(self, **settings: str) -> None:
        """Start the postmaster only; `settings` are over those of the server."""
        assert self._process is None
        wanted = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.directory),
            **_FAST_BUT_NOT_DURABLE,
            **_SMALL,
            **self.settings,
            **settings,
        }
        flags = [word for name, value in wanted.items() for word in ("-c", f"{name}={value}")]
        inside = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*inside, *_as_account(), str(require_programs() / "postgres"), "-D", str(self.data_directory), *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the postmaster, by default cutting off whoever is connected; SIGQUIT is a crash it tidies up after.

        SIGKILL leaves the backends to find out for themselves, so they are killed too.
        """
        if self._process is None:
            return
        backends = _children(self._process.pid) if how is signal.SIGKILL else []
        self._process.send_signal(how)
        for pid in backends:
            _kill(pid)
        try:
            self._process.wait(_STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_STOP_DEADLINE_S)
        _until_gone(backends)
        self._process = None

    def remove(self) -> None:
        """End it and remove its files."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def connect(self, database: str = "limiquantix", **options: Any) -> psycopg.Connection[Any]:
        """Open a connection of the test's own, in autocommit mode."""
        return psycopg.connect(
            host=str(self.directory), user=OWNER, dbname=database, autocommit=True, connect_timeout=5, **options
        )

    def url(self, database: str = "limiquantix", **query: str) -> str:
        """Address of a database for the control plane."""
        address = URL.create(
            "postgresql+psycopg", username=OWNER, database=database, query={"host": str(self.directory), **query}
        )
        return address.render_as_string(hide_password=False)

    def create_database(self, name: str = "limiquantix", template: str = "template0") -> None:
        """Make a database."""
        with self.connect("postgres") as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                    sql.Identifier(name), sql.Identifier(template)
                )
            )

    def drop_database(self, name: str) -> None:
        """Remove a database and whoever is connected to it."""
        with self.connect("postgres") as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def backends(self, database: str = "limiquantix") -> list[int]:
        """Process ids that serve the control plane's connections to a database."""
        with self.connect("postgres") as connection:
            rows = connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid() "
                "AND application_name = 'limiquantix-controlplane' ORDER BY pid",
                [database],
            ).fetchall()
        return [row[0] for row in rows]


class SharedServer:
    """The one server of this test process, with a migrated database to copy for each test."""

    _TEMPLATE = "migrated"

    def __init__(self, server: PostgresqlServer) -> None:
        self.server = server
        self._names = (f"test_{number}" for number in itertools.count(1))
        self._made: deque[str] = deque()
        server.create_database(self._TEMPLATE)
        migrate(server.url(self._TEMPLATE))

    def migrated(self) -> str:
        """Make a migrated database, and return its address."""
        return self._make(self._TEMPLATE)

    def empty(self) -> str:
        """Make a database without tables, and return its address."""
        return self._make("template0")

    def _make(self, template: str) -> str:
        while len(self._made) >= _KEPT_DATABASE_COUNT:
            self.server.drop_database(self._made.popleft())
        name = next(self._names)
        self.server.create_database(name, template)
        self._made.append(name)
        return self.server.url(name)


@functools.cache
def shared_server() -> SharedServer:
    """Start this process's server at the first call; it ends with the process."""
    server = new_server()
    atexit.register(server.remove)
    server.create()
    server.start()
    return SharedServer(server)


def fresh_postgresql(_directory: Path) -> str:
    """Make a migrated database on the shared server."""
    require_programs()
    return shared_server().migrated()


def empty_postgresql(_directory: Path) -> str:
    """Make a database without tables on the shared server."""
    require_programs()
    return shared_server().empty()


def new_server(**options: Any) -> PostgresqlServer:
    """Make a server, not yet created, in a new directory that its account can reach; `options` are its fields."""
    require_programs()
    parent = Path(tempfile.mkdtemp(prefix="limiquantix-pg-", dir=_memory()))
    parent.rmdir()  # only its name is wanted
    return PostgresqlServer(parent, **options)


def _memory() -> Path | None:
    """Where files stay in memory, if there is room: a database is made there in a tenth of the time; else None."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        return None
    room_bytes = min(shutil.disk_usage(memory).free, psutil.virtual_memory().available)
    return memory if room_bytes >= _ROOM_BYTES else None


def _account() -> pwd.struct_passwd | None:
    """The account that PostgreSQL is to run as; None for our own."""
    return pwd.getpwnam("postgres") if os.geteuid() == 0 else None


def _as_account() -> list[str]:
    """Command that starts another as the account. However this process dies, SIGINT ends the other too."""
    words = ["setpriv", "--pdeathsig", "INT"]
    if (account := _account()) is not None:
        words += ["--reuid", str(account.pw_uid), "--regid", str(account.pw_gid), "--clear-groups"]
    return words


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _until_gone(pids: list[int]) -> None:
    """Wait until none of the processes runs: one that is still to be reaped holds nothing any more."""
    wait_until(lambda: not any(_runs(pid) for pid in pids), "the server's processes end", _STOP_DEADLINE_S)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(holds: Callable[[], bool], what: str, deadline_s: float = 60.0) -> None:
    """Wait until something is so, and fail if it does not come about."""
    deadline = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {deadline_s:g} s in vain until {what}"
        time.sleep(_POLL_S)
