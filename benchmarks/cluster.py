"""The product as it is measured: the development cluster's real processes, below a directory that vanishes."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import psutil

from benchmarks.calling import open_as
from controlplane.cli.dev.stack import Cluster, ClusterOptions, HypervisorChoice

CACHE_DIR = Path(__file__).parents[1] / ".cache" / "benchmarks"
"""Kept between runs: the guest image, which takes seconds to build. Ignored by git, safe to delete."""

_ROOM: dict[str, str] = {
    "LIMIQUANTIX_SCHEDULER__CPU_OVERCOMMIT_RATIO": "64",
    "LIMIQUANTIX_SCHEDULER__RESERVED_CORES": "0",
    "LIMIQUANTIX_HYPERVISOR__MOCK__VCPU_COUNT": "4096",
    "LIMIQUANTIX_HYPERVISOR__MOCK__MEMORY_MIB": str(2**24),
}
"""What the daemons are told besides: a hundred VMs that are never started must find room on two CPUs, and thousands on
a simulated host."""

DATABASE_URL = "LIMIQUANTIX_DATABASE__URL"
KEY_COUNT = 8
"""API keys that are called with in turn: each of them may make 2,000 calls a second."""
_KEYS_LAST = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Measured:
    """A running cluster, with the processes to look at, and what its administrator's programs call with."""

    cluster: Cluster
    data_dir: Path
    control_plane: psutil.Process
    node_daemon: psutil.Process
    authority_pem: str
    keys: Sequence[str]

    def open_channel(self) -> AbstractAsyncContextManager[grpc.aio.Channel]:
        """Open a channel to the control plane as such a program does."""
        return open_as(self.keys, self.cluster.grpc_address, self.authority_pem)


@asynccontextmanager
async def running_cluster(
    hypervisor: HypervisorChoice,
    prepare: Callable[[Path], Awaitable[None]] | None = None,
    database_url: str | None = None,
) -> AsyncIterator[Measured]:
    """Run a control plane and one node daemon; all of it, and its data, is gone afterwards.

    Args:
        prepare: called with the data directory before anything is started.
        database_url: another database than a SQLite file of its own; stays.
    """
    with tempfile.TemporaryDirectory(prefix="limiquantix-bench-") as name:
        data_dir = Path(name)
        # A system libvirt's QEMU runs as another user and reads the kernel from here.
        await asyncio.to_thread(data_dir.chmod, 0o755)
        if prepare is not None:
            await prepare(data_dir)
        os.environ.update(_ROOM)  # this process is the benchmark's own; its daemons inherit
        os.environ["XDG_CONFIG_HOME"] = str(data_dir / "config")  # nobody's commands are logged in to it
        os.environ.pop(DATABASE_URL, None)
        if database_url is not None:
            os.environ[DATABASE_URL] = database_url
        async with Cluster(ClusterOptions(data_dir, CACHE_DIR, hypervisor, 1, 0, 0), tell) as cluster:
            yield Measured(
                cluster,
                data_dir,
                child_process("controlplane"),
                child_process("nodedaemon"),
                await asyncio.to_thread(cluster.authority_path.read_text),
                await _keys(cluster),
            )


async def _keys(cluster: Cluster) -> Sequence[str]:
    """Make the administrator's keys, which last longer than the quarter of an hour that an access token does."""
    ends_at = (datetime.now(UTC) + _KEYS_LAST).isoformat()
    made = [
        await cluster.api.call("ApiKeyService", "CreateApiKey", name=f"benchmark-{number}", expiresAt=ends_at)
        for number in range(KEY_COUNT)
    ]
    return [str(each["secret"]) for each in made]


def tell(line: str) -> None:
    """Say how it goes, apart from the results."""
    print(f"  .. {line}", file=sys.stderr, flush=True)


def database_path(data_dir: Path) -> Path:
    """Where the cluster's control plane keeps its database."""
    return data_dir / "controlplane" / "limiquantix.db"


def child_process(module: str) -> psutil.Process:
    """Find the one descendant that is `python -m <module>`; the reaper above it has that among its words too.

    Raises:
        LookupError: there is none, or more than one.
    """
    found = [child for child in psutil.Process().children(recursive=True) if child.cmdline()[1:3] == ["-m", module]]
    if len(found) != 1:
        raise LookupError(f"{len(found)} processes run {module}, expected one")
    return found[0]


async def cpu_time_us(process: psutil.Process) -> float:
    """CPU time a process has used so far, in microseconds.

    From the scheduler's own accounts in nanoseconds; the usual ones, in ticks of 10 ms, are too coarse for short runs.
    Source: Linux, Documentation/scheduler/sched-stats.rst, /proc/<pid>/schedstat, first field.
    """
    return await asyncio.to_thread(_sum_threads, process.pid)


def _sum_threads(pid: int) -> float:
    total_ns = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            total_ns += int((thread / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
    return total_ns / 1000
