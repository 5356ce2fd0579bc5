"""Heartbeats of many nodes at one control plane that has a CPU to itself; another process beats, on the others.

Every node has a certificate and a connection of its own, beats each 5 s as its daemon would, and gets a lease. High
availability is on, through etcd where that is installed. Three things are measured: all nodes connect at once, which is
nothing but handshakes; they beat for a while; the control plane is killed and started again while they do, so that all
of them connect anew and must be answered before their leases end.

The nodes do the other half of each handshake, on CPUs of which there may be no more than the control plane has. While
it is away, each of them tries to connect twice a second, which for thousands is more than one CPU can do: then, what is
measured of the return is the nodes. What a handshake takes of the control plane's CPU does not have that weakness.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

from benchmarks.cluster import cpu_time_us, tell
from benchmarks.measurement import Section
from benchmarks.membership import admit_all_nodes
from benchmarks.memory import read_footprint
from benchmarks.records import insert_nodes
from benchmarks.workers import Answer, Worker, running_workers
from controlplane.ha_settings import HighAvailabilitySettings
from tests.support.etcd import EtcdCluster

TITLE = "heartbeats at one control plane on one CPU"
INTERVAL_S = 5
WARM_UP_ROUNDS = 2
ROUNDS = 6
_DEATH_AFTER_S = 1.5 * INTERVAL_S
_START_DEADLINE_S = 180.0
"""Two seconds on a CPU that nobody else uses."""
_RETURN_DEADLINE_S = 120.0
_SPARE_FILES = 500
"""What a process has open beside its connections."""
_ENVIRONMENT = {
    "LIMIQUANTIX_DRS__ENABLED": "false",
    "LIMIQUANTIX_HA__HEARTBEAT_INTERVAL_S": str(INTERVAL_S),
}
"""Balancing would call each node for its measures, and there are none to call. Nodes are told the interval that they
have here, so that leases and suspicion go by it."""

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class HeartbeatEffort:
    """How many nodes beat."""

    node_count: int


async def measure_heartbeats(effort: HeartbeatEffort) -> Section:
    """Run this part; needs two CPUs."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        return Section("heartbeats", TITLE, skipped="needs a CPU for the control plane and another one for the nodes")
    if not _may_open(effort.node_count + _SPARE_FILES):
        return Section("heartbeats", TITLE, skipped="a process may not open that many files (ulimit -Hn)")
    async with AsyncExitStack() as stack:
        data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="limiquantix-bench-")))
        database, members_path = data_dir / "limiquantix.db", data_dir / "members"
        await insert_nodes(database, effort.node_count)
        members = await admit_all_nodes(database, data_dir / "secret.key")
        await asyncio.to_thread(members.write, members_path)
        coordination = _etcd(stack, data_dir)
        plane = _Plane(data_dir, cpus[:1], coordination)
        stack.push_async_callback(plane.stop)
        await plane.start()
        (worker,) = await stack.enter_async_context(running_workers("heartbeat_worker", 1))
        tell(f"{effort.node_count} nodes connect at once")
        connecting = await _connect(plane, worker, members_path, cpus[1:], effort.node_count)
        tell(f"each of them beats every {INTERVAL_S} s")
        beating = await _beat(plane, worker)
        tell("the control plane is killed and started again")
        restarting = await _restart(plane, worker)
    notes = () if coordination else ("without etcd, which is not installed",)
    figures = {
        "all connect at once": {"nodes": float(effort.node_count), **connecting},
        "one control plane": beating,
        "it is killed and started again": restarting,
    }
    return Section("heartbeats", TITLE, notes=notes, figures=figures)


async def _connect(plane: _Plane, worker: Worker, members_path: Path, cpus: Sequence[int], node_count: int) -> Figures:
    before, began_us = await asyncio.to_thread(read_footprint, plane.pid), await cpu_time_us(plane.process)
    got = await worker.ask(do="connect", address=plane.hosts_address, members_path=str(members_path), cpus=cpus)
    used_us = await cpu_time_us(plane.process) - began_us
    after = await asyncio.to_thread(read_footprint, plane.pid)
    return {
        "p50_s": got["p50_s"],
        "last_s": got["max_s"],
        "cpu_us_per_handshake": used_us / node_count,
        "cpu_us_per_handshake_of_the_node": 1e6 * got["cpu_s"] / node_count,
        "kib_per_connection": 1024 * (after.rss_mib - before.rss_mib) / node_count,
    }


async def _beat(plane: _Plane, worker: Worker) -> Figures:
    """Beat for a while, after a warm-up."""
    await _rounds(worker, WARM_UP_ROUNDS)
    began_at, began_us = datetime.now(UTC), await cpu_time_us(plane.process)
    got = await _rounds(worker, ROUNDS)
    used_us = await cpu_time_us(plane.process) - began_us
    written = await asyncio.to_thread(_written_since, plane.data_dir / "limiquantix.db", began_at)
    footprint = await asyncio.to_thread(read_footprint, plane.pid)
    return {
        "heartbeats_per_s": got["count"] / got["seconds"],
        "answer_p50_ms": got["p50_ms"],
        "answer_p99_ms": got["p99_ms"],
        "answer_max_ms": got["max_ms"],
        "sent_late_p99_ms": got["late_p99_ms"],
        **_what_failed(got),
        "cpu_percent": used_us / got["seconds"] / 1e4,
        "cpu_us_per_heartbeat": used_us / got["count"],
        "rss_mib": footprint.rss_mib,
        "rows_written_per_heartbeat": written / got["count"],
    }


async def _rounds(worker: Worker, count: int) -> Answer:
    """Have all nodes beat so many intervals long."""
    await worker.ask(do="begin", interval_s=INTERVAL_S)
    await asyncio.sleep(count * INTERVAL_S)
    return await worker.ask(do="end")


async def _restart(plane: _Plane, worker: Worker) -> Figures:
    """Kill the control plane when each node has beaten, have it back as soon as it can be, and wait for all of them."""
    await worker.ask(do="begin", interval_s=INTERVAL_S)
    await asyncio.sleep(_DEATH_AFTER_S)
    died_s = time.monotonic()
    await plane.kill()
    await plane.start()
    ready_s, began_us = time.monotonic(), await cpu_time_us(plane.process)
    while (found := await worker.ask(do="recall", at_s=ready_s))["missing"]:
        if time.monotonic() - ready_s > _RETURN_DEADLINE_S:
            break
        await asyncio.sleep(1.0)
    elapsed_s, used_us = time.monotonic() - ready_s, await cpu_time_us(plane.process) - began_us
    got = await worker.ask(do="end")
    footprint = await asyncio.to_thread(read_footprint, plane.pid)
    return {
        "away_s": ready_s - died_s,
        "heard_again_p50_s": found["p50_s"],
        "heard_again_p99_s": found["p99_s"],
        "heard_again_last_s": found["max_s"],
        "not_heard_again": float(found["missing"]),
        "longest_without_answer_s": found["silent_s"],
        "lease_s": HighAvailabilitySettings(heartbeat_interval_s=INTERVAL_S).times.lease_s,
        **_what_failed(got),
        "cpu_percent": used_us / elapsed_s / 1e4,
        "rss_mib": footprint.rss_mib,
    }


def _what_failed(got: Answer) -> Figures:
    return {"failed": float(sum(got["faults"].values())), "without_lease": float(got["count"] - got["leases"])}


def _may_open(file_count: int) -> bool:
    """Allow this process, and those that it starts, so many open files; False if it may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < file_count:
        return False
    if soft != resource.RLIM_INFINITY and soft < file_count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (file_count, hard))
    return True


def _etcd(stack: AsyncExitStack, data_dir: Path) -> Mapping[str, str]:
    """Run an etcd of one member; returns what the control plane is told of it, nothing where it is not installed."""
    if shutil.which("etcd") is None:
        return {}
    etcd = EtcdCluster(data_dir)
    etcd.start()  # in this thread, the main one, with which it ends
    stack.callback(etcd.stop)
    return {
        "LIMIQUANTIX_COORDINATION__BACKEND": "etcd",
        "LIMIQUANTIX_COORDINATION__ENDPOINTS": json.dumps(etcd.endpoints),
    }


@dataclass(slots=True)
class _Plane:
    """A control plane on some CPUs alone, which can be killed and started again where it was."""

    data_dir: Path
    cpus: Sequence[int]
    coordination: Mapping[str, str]
    hosts_address: str = "127.0.0.1:0"
    _process: asyncio.subprocess.Process | None = field(default=None, repr=False)

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None, "start it first"
        return self._process.pid

    @property
    def process(self) -> psutil.Process:
        """What runs."""
        return psutil.Process(self.pid)

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        ready = self.data_dir / "ready.json"
        await asyncio.to_thread(ready.unlink, missing_ok=True)
        places = {
            "LIMIQUANTIX_SECURITY__HOSTS_LISTEN_ADDRESS": self.hosts_address,
            "LIMIQUANTIX_SECURITY__RUNTIME_DIR": str(self.data_dir / "run"),
            "LIMIQUANTIX_SECRETS__KEY_FILE": str(self.data_dir / "secret.key"),
        }
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "controlplane", "--database-url", f"sqlite:///{self.data_dir / 'limiquantix.db'}",
            "--http-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0", "--log-level", "error",
            "--ready-file", str(ready), env={**os.environ, **_ENVIRONMENT, **self.coordination, **places},
            preexec_fn=lambda: os.sched_setaffinity(0, self.cpus),
        )  # fmt: skip
        async with asyncio.timeout(_START_DEADLINE_S):
            while not await asyncio.to_thread(ready.exists):
                if self._process.returncode is not None:
                    raise RuntimeError("the control plane ended at once; see above")
                await asyncio.sleep(0.02)
        self.hosts_address = json.loads(await asyncio.to_thread(ready.read_text))["hosts"]

    async def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None

    async def stop(self) -> None:
        """Have it end."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()


def _written_since(database: Path, at: datetime) -> int:
    """Count the nodes whose row has a heartbeat of since; in less than a minute none is written twice without need."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        moment = int(at.timestamp() * 1_000_000)
        (count,) = connection.execute("SELECT count(*) FROM nodes WHERE last_heartbeat_at >= ?", (moment,)).fetchone()
    return int(count)
