"""A private PostgreSQL server, as durable as its distribution sets it up: what it calls committed is on the disk.

It is the tests' own server with durability switched on again. Only what keeps it small and off the network differs from
the distribution's settings.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from controlplane.state.factory import migrate
from tests.support.postgresql import PostgresqlServer, find_programs, new_server

SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "autovacuum": "on",
    "jit": "on",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
}


def why_no_postgresql() -> str:
    """Say what keeps this part from running; "" if nothing does."""
    return "" if find_programs() else "PostgreSQL (package postgresql) is not installed"


@asynccontextmanager
async def running_postgresql() -> AsyncIterator[PostgresqlServer]:
    """Run a server with a migrated database `limiquantix`; all of it is gone afterwards."""
    server = new_server(settings=SETTINGS)
    try:
        await asyncio.to_thread(server.create)
        server.start()  # in this thread, the main one, with which it ends
        await asyncio.to_thread(server.create_database)
        await asyncio.to_thread(migrate, server.url())
        yield server
    finally:
        await asyncio.to_thread(server.remove)


async def raw_commits_per_s(server: PostgresqlServer, connection_count: int, stretch_s: int) -> float:
    """Commits a second of `pgbench` that do as little as a commit can: one row of 1,000 changed by its key.

    Args:
        stretch_s: whole seconds, which is all that pgbench takes.
    """
    programs = find_programs()
    assert programs is not None
    script = server.directory / "raw.sql"
    await asyncio.to_thread(_prepare_raw, server, script)
    pgbench = await asyncio.create_subprocess_exec(
        str(programs / "pgbench"), "--no-vacuum", "--protocol", "prepared", "--file", str(script),
        "--client", str(connection_count), "--jobs", "2", "--time", str(stretch_s),
        "--host", str(server.directory), "--username", "limiquantix", "limiquantix",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    answer, complaint = await pgbench.communicate()
    for line in answer.decode().splitlines():
        if line.startswith("tps = "):
            return float(line.split()[2])
    raise RuntimeError(f"pgbench did not say how fast it was:\n{complaint.decode()}")


def _prepare_raw(server: PostgresqlServer, script: Path) -> None:
    if script.exists():
        return
    with server.connect() as connection:
        connection.execute("CREATE TABLE raw_commits (id int PRIMARY KEY, value int NOT NULL)")
        connection.execute("INSERT INTO raw_commits SELECT id, 0 FROM generate_series(1, 1000) id")
    script.write_text("\\set id random(1, 1000)\nUPDATE raw_commits SET value = value + 1 WHERE id = :id;\n")
