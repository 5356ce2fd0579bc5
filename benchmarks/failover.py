"""From the death of a host until its VM runs elsewhere, with the product's default times.

A host is a node daemon with a simulated hypervisor and all its VMs, and dies by SIGKILL. Several clusters of three such
hosts and one control plane each are measured at once, since nearly all of the time is waiting. Once nothing but the end
of the lease proves the host dead, and once a power controller does: a program in the style of fence agents, as for any
other controller, that kills the host's process and looks whether it is gone.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import yaml

from benchmarks.cluster import tell
from benchmarks.measurement import Section, percentile
from controlplane.ha_settings import HighAvailabilitySettings
from limiquantix.compute.v1 import ha_service_pb2 as ha_api
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.ha_service_pb2_grpc import HaServiceStub
from limiquantix.compute.v1.vm_pb2 import CpuConfig, HaPolicy, MemoryConfig, VirtualMachine, VmSpec, VmStatus
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub
from limiquantix.rpc.channel import open_channel
from tests.support.node_daemon_process import command, environment
from tests.support.processes import start_control_plane

if TYPE_CHECKING:  # the asynchronous stubs' types exist for type checkers only
    from limiquantix.compute.v1.ha_service_pb2_grpc import HaServiceAsyncStub
    from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceAsyncStub

TITLE = "seconds from the death of a host until its VM runs elsewhere; goals: p95 of 30 s, and 15 s with power off"
PID_FILE = "pid"
"""Where the power controller of a host finds it."""
LANES = 4
"""Clusters at once."""
GOALS_S = {"lease": 30.0, "power off": 15.0}
_HOSTS = ("host-a", "host-b", "host-c")
_DEADLINE_S = 120.0
_CALL_S = 10.0
_POLL_S = 0.02
_TIMES = HighAvailabilitySettings().times
_PATIENCE_S = _TIMES.suspect_after_s + _TIMES.proof_wait_s + _DEADLINE_S
_AGENT = """#!{python}
import os, signal, sys
told = dict(line.rstrip("\\n").split("=", 1) for line in sys.stdin)
pid = int(open(told["pid_file"]).read())
if told["action"] == "off":
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
else:
    try:
        state = open(f"/proc/{{pid}}/stat").read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        state = "Z"
    sys.exit(2 if state == "Z" else 0)
"""

FoundT = TypeVar("FoundT")


@dataclass(frozen=True, slots=True)
class FailoverEffort:
    """How often each is measured."""

    run_count: int


@dataclass(slots=True)
class _Host:
    """One simulated host, which can die and boot."""

    name: str
    directory: Path
    storage: Path
    address: str
    _process: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """Start it, as another boot than before.

        Not by the event loop: uvloop forks, and a fork of a process in which gRPC is at work may crash.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        boot_id, config = self.directory / "boot_id", self.directory / "node.yaml"
        boot_id.write_text(f"{uuid.uuid4()}\n")
        data_dir = str(self.directory / "data")
        document = {
            "node": {"hostname": self.name, "data_dir": data_dir, "boot_id_path": str(boot_id)},
            "server": {"listen_address": "127.0.0.1:0", "metrics_port": 0},
            "hypervisor": {"backend": "mock", "storage_path": str(self.storage)},
            "control_plane": {"address": self.address, "registration_enabled": True},
            "self_fencing": {"run_dir": str(self.directory / "guard")},
        }
        config.write_text(yaml.safe_dump(document))
        with (self.directory / "node.log").open("ab") as log:
            self._process = subprocess.Popen(command("--config", str(config)), stderr=log, env=environment())
        (self.directory / PID_FILE).write_text(f"{self._process.pid}\n")

    def die(self) -> None:
        """End at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@dataclass(slots=True)
class _Lane:
    """One cluster."""

    hosts: Mapping[str, _Host]
    ha: HaServiceAsyncStub
    vms: VMServiceAsyncStub
    names: dict[str, str] = field(default_factory=dict)
    """Host names by id of the node."""

    async def until_well(self) -> None:
        """Wait until the death of any host can be proven by its lease, and nothing is left of the last one."""

        async def look() -> bool | None:
            status = await self.ha.GetHaStatus(ha_api.GetHaStatusRequest(), timeout=_CALL_S)
            self.names = {node.node_id: node.hostname for node in status.nodes}
            well = [
                node.is_self_fencing and node.health == ha_api.NODE_HEALTH_HEALTHY and not node.HasField("fence")
                for node in status.nodes
            ]
            return True if len(well) == len(self.hosts) and all(well) else None

        await _until(look)

    async def create(self) -> VirtualMachine:
        """Start a VM that is to be restarted elsewhere."""
        policy = HaPolicy(auto_restart=True, condition=HaPolicy.ALWAYS)
        spec = VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=128), ha_policy=policy)
        request = api.CreateVMRequest(name="web", spec=spec, start_on_create=True)
        return await self.vms.CreateVM(request, timeout=_DEADLINE_S)

    async def get(self, vm_id: str) -> VirtualMachine:
        """Read a VM."""
        return await self.vms.GetVM(api.GetVMRequest(id=vm_id), timeout=_CALL_S)

    async def measure(self, vm_id: str, phase: float) -> float:
        """Let the VM's host die; returns how many seconds later it runs elsewhere. All is well again then.

        Args:
            phase: share of a heartbeat's interval that passes before.
        """
        await self.until_well()
        dead = (await self.get(vm_id)).status.node_id
        await asyncio.sleep(phase * _TIMES.heartbeat_interval_s)
        host = self.hosts[self.names[dead]]
        began_s = time.monotonic()
        host.die()

        async def runs_elsewhere() -> bool | None:
            status = (await self.get(vm_id)).status
            return True if status.node_id != dead and status.state == VmStatus.RUNNING else None

        await _until(runs_elsewhere)
        took_s = time.monotonic() - began_s
        await asyncio.to_thread(host.boot)
        return took_s


async def measure_failover(effort: FailoverEffort) -> Section:
    """Run this part."""
    figures = {}
    for proof, goal_s in GOALS_S.items():
        tell(f"{effort.run_count} deaths of a host, proven by {proof}")
        taken = await _measure(effort.run_count, has_power=proof == "power off")
        figures[proof] = {
            "p50_s": percentile(taken, 0.5),
            "p95_s": percentile(taken, 0.95),
            "max_s": max(taken),
            "goal_s": goal_s,
            "runs": float(len(taken)),
        }
    missed = tuple(f"{proof}: goal missed" for proof, got in figures.items() if got["p95_s"] > got["goal_s"])
    return Section("failover", TITLE, notes=missed, figures=figures)


async def _measure(run_count: int, *, has_power: bool) -> list[float]:
    numbers = iter(range(run_count))  # taken by whichever cluster is free

    async def one(lane: _Lane) -> list[float]:
        vm = await lane.create()
        return [await lane.measure(vm.id, number / run_count) for number in numbers]

    async with AsyncExitStack() as stack:
        lanes = [await stack.enter_async_context(_lane(has_power=has_power)) for _ in range(min(LANES, run_count))]
        taken = await asyncio.gather(*(one(lane) for lane in lanes))
    return [took_s for some in taken for took_s in some]


@asynccontextmanager
async def _lane(*, has_power: bool) -> AsyncIterator[_Lane]:
    """Run a cluster; all of it is gone afterwards."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="limiquantix-bench-")))
        settings: dict[str, Any] = {"ha": {"enabled": True}}
        if has_power:
            settings["power"] = {"devices_path": str(_controllers(directory))}
        starting = start_control_plane(directory / "plane", settings=settings)
        plane = await asyncio.to_thread(starting.__enter__)
        stack.push_async_callback(asyncio.to_thread, starting.__exit__, None, None, None)
        storage = directory / "images"
        storage.mkdir()
        hosts = {name: _Host(name, directory / name, storage, plane.grpc_address) for name in _HOSTS}
        for host in hosts.values():
            stack.callback(host.die)
            await asyncio.to_thread(host.boot)
        channel: grpc.aio.Channel = await stack.enter_async_context(open_channel(plane.grpc_address))
        lane = _Lane(hosts, HaServiceStub(channel), VMServiceStub(channel))
        await lane.until_well()
        yield lane


def _controllers(directory: Path) -> Path:
    """Write a power controller for each host, and the file that names them."""
    agent, devices = directory / "agent", directory / "controllers.yaml"
    agent.write_text(_AGENT.format(python=sys.executable))
    agent.chmod(0o755)
    controllers = [
        {
            "host": name,
            "agent": "command",
            "address": "127.0.0.1",
            "executable": str(agent),
            "parameters": {"pid_file": str(directory / name / PID_FILE)},
        }
        for name in _HOSTS
    ]
    devices.write_text(yaml.safe_dump({"controllers": controllers}))
    return devices


async def _until(look: Callable[[], Awaitable[FoundT | None]]) -> FoundT:
    async with asyncio.timeout(_PATIENCE_S):
        while (found := await look()) is None:  # noqa: ASYNC110 - it happens in other processes
            await asyncio.sleep(_POLL_S)
    return found
