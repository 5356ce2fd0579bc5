"""What each daemon holds in memory at rest: after its start, and after 100 VMs were created through the API.

The reference is the bare server of `benchmarks.bare_server`: Python, gRPC and uvloop, which no daemon of ours can do
without. PSS counts a page shared by n processes as 1/n, so the figures of all processes may be added; RSS counts it
whole in each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.bare_server import running_bare_server
from benchmarks.cluster import Measured, child_process, running_cluster, tell
from benchmarks.libvirt_host import why_no_libvirt
from benchmarks.measurement import Pair, Row, Section, compare
from controlplane.cli.dev.stack import HypervisorChoice
from limiquantix.compute.v1 import vm_service_pb2 as pb
from limiquantix.compute.v1.vm_pb2 import CpuConfig, MemoryConfig, VmSpec
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub

TITLE = "memory of the daemons at rest, against a bare grpc.aio server; lower is better"
_VM_MEMORY_MIB = 16
_CALL_TIMEOUT_S = 60.0
_SETTLE_S = 1.0
"""After a start or a burst of calls; heartbeats and event handlers have run by then."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory of one process, in MiB."""

    pss_mib: float
    rss_mib: float


async def measure_memory(vm_count: int, hypervisors: Sequence[HypervisorChoice]) -> Section:
    """Run this part, a cluster for each hypervisor, the mock first; libvirt is left out where there is none."""
    rows: list[Row] = []
    notes: list[str] = []
    for hypervisor in hypervisors:
        if hypervisor is HypervisorChoice.LIBVIRT and (reason := await why_no_libvirt()):
            notes.append(f"node daemon with libvirt left out: {reason}")
            continue
        async with running_cluster(hypervisor) as measured:
            rows += await _measure_cluster(measured, hypervisor, vm_count, notes)
    return Section("memory", TITLE, tuple(rows), tuple(notes))


async def _measure_cluster(
    measured: Measured, hypervisor: HypervisorChoice, vm_count: int, notes: list[str]
) -> list[Row]:
    daemons = {f"node daemon ({hypervisor.value})": measured.node_daemon}
    if hypervisor is HypervisorChoice.MOCK:
        daemons = {"control plane": measured.control_plane, **daemons}
    async with running_bare_server(measured.data_dir / "bare", {}):
        bare_process = child_process("benchmarks.bare_server")
        await asyncio.sleep(_SETTLE_S)
        bare, at_start = await _look(bare_process), {name: await _look(daemons[name]) for name in daemons}
        tell(f"creating {vm_count} VMs")
        await _create_vms(measured, vm_count)
        await asyncio.sleep(_SETTLE_S)
        later = {name: await _look(daemons[name]) for name in daemons}
    rows: list[Row] = []
    for name in daemons:
        for when, footprint in (("after start", at_start[name]), (f"with {vm_count} VMs", later[name])):
            rows += [
                compare(f"{name} {when}, PSS", [Pair(footprint.pss_mib, bare.pss_mib)], "MiB"),
                compare(f"{name} {when}, RSS", [Pair(footprint.rss_mib, bare.rss_mib)], "MiB"),
            ]
        growth_kib = (later[name].pss_mib - at_start[name].pss_mib) * 1024 / vm_count
        notes.append(f"{name}: {growth_kib:.0f} KiB a VM, what the calls themselves warmed up included")
    return rows


async def _create_vms(measured: Measured, count: int) -> None:
    spec = VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=_VM_MEMORY_MIB))
    async with measured.open_channel() as channel:
        stub = VMServiceStub(channel)
        for number in range(count):
            await stub.CreateVM(pb.CreateVMRequest(name=f"vm-{number}", spec=spec), timeout=_CALL_TIMEOUT_S)


async def _look(process: psutil.Process) -> Footprint:
    return await asyncio.to_thread(read_footprint, process.pid)


def read_footprint(pid: int, proc: Path = Path("/proc")) -> Footprint:
    """Read a process's memory. Source: Linux, Documentation/filesystems/proc.rst, smaps_rollup; values are in kB."""
    fields: dict[str, float] = {}
    for line in (proc / str(pid) / "smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        fields[name] = int(value.split()[0]) / 1024
    return Footprint(pss_mib=fields["Pss"], rss_mib=fields["Rss"])
