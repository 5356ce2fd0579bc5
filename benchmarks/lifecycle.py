"""What the stack adds to a VM's life: create, start, force stop and delete, ours against libvirt called directly.

Ours is everything: gRPC client, control plane with its database on disk, gRPC to the node daemon, libvirt. The direct
calls (define, create, destroy, undefine) go to the same libvirt daemon, with a copy of the very definition that the
product made. Pairs alternate in order. The guest has no disk and is stopped as soon as it was started, so what is
compared is the calls and not a guest's boot.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from benchmarks.cluster import Measured, running_cluster, tell
from benchmarks.libvirt_host import DirectLibvirt, copy_of_definition, direct_libvirt, why_no_libvirt
from benchmarks.measurement import Goal, Pair, Row, Section, compare
from benchmarks.rpc_times import RpcTimes, fetch_rpc_times, mean_ms, metrics_url_of_node
from controlplane.cli.dev.demo import BootFiles
from controlplane.cli.dev.stack import Cluster, HypervisorChoice
from limiquantix.compute.v1 import vm_service_pb2 as pb
from limiquantix.compute.v1.vm_pb2 import BootConfig, CpuConfig, DirectKernelBoot, MemoryConfig, VmSpec
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub

if TYPE_CHECKING:
    from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceAsyncStub

TITLE = "a VM's create, start, force stop and delete, ours against libvirt-python on the same daemon; lower is better"
GOAL = Goal(limit=1.25, later=1.05)
STEPS = ("create", "start", "stop", "delete")
_MEMORY_MIB = 128
_CALL_TIMEOUT_S = 60.0
_WARM_UP_PAIRS = 2
_STEP_METHODS = ("CreateVM", "StartVM", "StopVM", "DeleteVM")
_NODE_METHODS = ("CreateVM", "StartVM", "ForceStopVM", "GetVMStatus", "DeleteVM")

StepTimes = tuple[float, ...]
"""Milliseconds of each of `STEPS`."""


@dataclass(frozen=True, slots=True)
class _Turn:
    ours: StepTimes
    direct: StepTimes


async def measure_lifecycle(pair_count: int) -> Section:
    """Run this part; on a machine without libvirt, say why not."""
    if reason := await why_no_libvirt():
        return Section("lifecycle", TITLE, skipped=reason)
    async with running_cluster(HypervisorChoice.LIBVIRT) as measured:
        uri = measured.cluster.libvirt_uri
        if uri is None or measured.cluster.boot_files is None:
            raise RuntimeError("the cluster runs without libvirt though it was asked for")
        async with measured.open_channel() as channel, direct_libvirt(uri) as libvirt:
            stack = _Stack(VMServiceStub(channel), _spec(measured.cluster.boot_files))
            definition = await _definition_of_product(stack, libvirt)
            direct = _Direct(libvirt, definition, measured.data_dir)
            tell(f"{pair_count} pairs of lifecycles")
            for number in range(_WARM_UP_PAIRS):
                await _take_turns(stack, direct, -1 - number)
            before = await _read_rpc_times(measured)
            turns = [await _take_turns(stack, direct, number) for number in range(pair_count)]
            after = await _read_rpc_times(measured)
    return Section("lifecycle", TITLE, _rows(turns), figures=_where_time_goes(turns, before, after))


def _spec(files: BootFiles) -> VmSpec:
    boot = DirectKernelBoot(kernel_path=files.kernel, initrd_path=files.initrd, cmdline=files.arguments)
    return VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=_MEMORY_MIB), boot=BootConfig(direct_boot=boot))


class _Stack:
    """The product's side."""

    def __init__(self, stub: VMServiceAsyncStub, spec: VmSpec) -> None:
        self._stub = stub
        self._spec = spec

    async def create(self, name: str) -> str:
        vm = await self._stub.CreateVM(pb.CreateVMRequest(name=name, spec=self._spec), timeout=_CALL_TIMEOUT_S)
        return vm.id

    async def delete(self, vm_id: str) -> None:
        await self._stub.DeleteVM(pb.DeleteVMRequest(id=vm_id), timeout=_CALL_TIMEOUT_S)

    async def live(self, name: str) -> StepTimes:
        """Take one VM through its life."""
        clock = _Clock()
        vm_id = await self.create(name)
        clock.step()
        await self._stub.StartVM(pb.StartVMRequest(id=vm_id), timeout=_CALL_TIMEOUT_S)
        clock.step()
        await self._stub.StopVM(pb.StopVMRequest(id=vm_id, force=True), timeout=_CALL_TIMEOUT_S)
        clock.step()
        await self.delete(vm_id)
        clock.step()
        return clock.times_ms


class _Direct:
    """libvirt's side."""

    def __init__(self, libvirt: DirectLibvirt, definition: str, data_dir: Path) -> None:
        self._libvirt = libvirt
        self._definition = definition
        self._data_dir = data_dir

    async def live(self, name: str) -> StepTimes:
        """Take one VM through its life."""
        console_log = self._data_dir / f"{name}.log"
        definition = copy_of_definition(self._definition, name, console_log)
        try:
            return await asyncio.to_thread(self._live, definition)
        finally:
            await asyncio.to_thread(console_log.unlink, missing_ok=True)

    def _live(self, definition: str) -> StepTimes:
        clock = _Clock()
        domain = self._libvirt.define(definition)
        clock.step()
        domain.create()
        clock.step()
        domain.destroy()
        clock.step()
        domain.undefine()
        clock.step()
        return clock.times_ms


class _Clock:
    """Times steps that follow one another."""

    def __init__(self) -> None:
        self._last_s = time.perf_counter()
        self.times_ms: StepTimes = ()

    def step(self) -> None:
        """End a step; the next begins."""
        now_s = time.perf_counter()
        self.times_ms += (1000 * (now_s - self._last_s),)
        self._last_s = now_s


async def _definition_of_product(stack: _Stack, libvirt: DirectLibvirt) -> str:
    vm_id = await stack.create("pattern")
    try:
        return await libvirt.read_definition(vm_id)
    finally:
        await stack.delete(vm_id)


async def _take_turns(stack: _Stack, direct: _Direct, number: int) -> _Turn:
    """One pair; who comes first alternates, as the first of two has a colder machine."""
    sides: list[Callable[[], Awaitable[StepTimes]]] = [
        lambda: stack.live(f"ours-{number % 10_000}"),
        lambda: direct.live(f"direct-{number % 10_000}"),
    ]
    order = (0, 1) if number % 2 == 0 else (1, 0)
    times = {place: await sides[place]() for place in order}
    return _Turn(ours=times[0], direct=times[1])


def _rows(turns: Sequence[_Turn]) -> tuple[Row, ...]:
    total = compare("all four", [Pair(sum(turn.ours), sum(turn.direct)) for turn in turns], "ms", GOAL)
    steps = [
        compare(step, [Pair(turn.ours[place], turn.direct[place]) for turn in turns], "ms")
        for place, step in enumerate(STEPS)
    ]
    return (total, *steps)


async def _read_rpc_times(measured: Measured) -> tuple[RpcTimes, RpcTimes]:
    """Times so far at the control plane and at the node daemon."""
    cluster: Cluster = measured.cluster
    log = await asyncio.to_thread((measured.data_dir / "log" / "node-1.log").read_text)
    authority = await asyncio.to_thread(ssl.create_default_context, cadata=measured.authority_pem)
    return await fetch_rpc_times(cluster.http_url, authority), await fetch_rpc_times(metrics_url_of_node(log))


def _where_time_goes(
    turns: Sequence[_Turn], before: tuple[RpcTimes, RpcTimes], after: tuple[RpcTimes, RpcTimes]
) -> dict[str, dict[str, float]]:
    """Mean of each call as the client saw it, inside the control plane, inside the node daemon, and without us."""
    places = list(enumerate(STEPS))
    return {
        "client, mean ms": {step: fmean(turn.ours[place] for turn in turns) for place, step in places},
        "control plane, mean ms": {name: mean_ms(before[0], after[0], name) for name in _STEP_METHODS},
        "node daemon, mean ms": {name: mean_ms(before[1], after[1], name) for name in _NODE_METHODS},
        "libvirt alone, mean ms": {step: fmean(turn.direct[place] for turn in turns) for place, step in places},
    }
