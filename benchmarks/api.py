"""How fast the API reads: GetVM and ListVMs over gRPC against a bare server that answers the same bytes.

One client process drives both in turn with the same stubs, so its own work is the same on both sides: it sends the same
request and decodes the same answer. The database holds 1,000 VMs, and in the part `scale` 10,000 on 500 nodes; GetVM
asks for them in a scattered order.

The client takes as much CPU as a fast server does. On two CPUs it, and not the bare server, bounds the reference, and
calls per second then flatter us. The rows of CPU time per call, taken from the kernel's accounts of the server
process, do not have that weakness.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import psutil

from benchmarks.bare_server import SERVICE, running_bare_server
from benchmarks.cluster import child_process, database_path, running_cluster, tell
from benchmarks.driving import Load, Side, drive
from benchmarks.measurement import Limit, Pair, Row, Section, compare
from benchmarks.memory import read_footprint
from benchmarks.records import insert_records
from controlplane.cli.dev.stack import HypervisorChoice
from limiquantix.compute.v1 import vm_service_pb2 as pb
from limiquantix.compute.v1.vm_pb2 import VirtualMachine
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub
from limiquantix.rpc.channel import open_channel

if TYPE_CHECKING:
    from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceAsyncStub

TITLE = "reads over gRPC, ours against a bare grpc.aio server answering the same bytes; calls/s: higher is better"
PAGE_SIZE = 50
_CALL_TIMEOUT_S = 10.0
_STRIDE = 37
"""Shares no factor with a count of VMs, so that stepping by it visits every VM."""

_LARGEST_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class ApiEffort:
    """How much is measured: rounds of one stretch each side."""

    round_count: int = 5
    stretch_s: float = 0.8


@dataclass(frozen=True, slots=True)
class Inventory:
    """What is in the database, how it is asked, and the goals that go with it."""

    part: str
    vm_count: int
    node_count: int
    concurrencies: tuple[int, ...]
    list_p50: Limit | None = None
    memory: Limit | None = None


SMALL = Inventory("api", vm_count=1_000, node_count=1, concurrencies=(1, 32))
LARGE = Inventory(
    "scale",
    vm_count=10_000,
    node_count=500,
    concurrencies=(1,),
    list_p50=Limit(10.0),
    memory=Limit(round(300e6 / 2**20)),
)


async def measure_api(effort: ApiEffort, inventory: Inventory) -> Section:
    """Run one of both parts."""

    async def prepare(data_dir: Path) -> None:
        tell(f"inserting {inventory.vm_count} VMs on {inventory.node_count} nodes")
        vm_ids.extend(await insert_records(database_path(data_dir), inventory.vm_count, inventory.node_count))

    vm_ids: list[str] = []
    async with (
        running_cluster(HypervisorChoice.MOCK, prepare) as measured,
        measured.open_channel() as channel,
    ):
        stub = VMServiceStub(channel)
        vm = await stub.GetVM(pb.GetVMRequest(id=vm_ids[0]), timeout=_CALL_TIMEOUT_S)
        page = await stub.ListVMs(pb.ListVMsRequest(page_size=PAGE_SIZE), timeout=_CALL_TIMEOUT_S)
        if len(page.vms) != PAGE_SIZE:
            raise RuntimeError(f"asked for {PAGE_SIZE} VMs of {inventory.vm_count}, got {len(page.vms)}")
        answers = {"GetVM": vm.SerializeToString(), "ListVMs": page.SerializeToString()}
        async with (
            running_bare_server(measured.data_dir / "bare", answers) as address,
            open_channel(address) as bare,
        ):
            sides = _sides(stub, bare, vm_ids, measured.control_plane)
            rows = [row for name in sides for row in await _compare_method(name, sides[name], effort, inventory)]
            await _read_everything(stub)
            rows.append(await _compare_memory(measured.control_plane, inventory))
    sizes = f"GetVM {len(answers['GetVM'])} bytes, ListVMs({PAGE_SIZE}) {len(answers['ListVMs'])} bytes"
    notes = (
        f"{inventory.vm_count} VMs on {inventory.node_count} nodes in the database",
        f"size of the answers: {sizes}",
    )
    return Section(inventory.part, TITLE, tuple(rows), notes)


async def _read_everything(stub: VMServiceAsyncStub) -> None:
    """Go through all VMs in the largest pages there are, which is when a control plane holds most of them at once."""
    token = ""
    while True:
        request = pb.ListVMsRequest(page_size=_LARGEST_PAGE, page_token=token)
        page = await stub.ListVMs(request, timeout=_CALL_TIMEOUT_S)
        if not (token := page.next_page_token):
            return


async def _compare_memory(ours: psutil.Process, inventory: Inventory) -> Row:
    footprints = [
        await asyncio.to_thread(read_footprint, process.pid)
        for process in (ours, child_process("benchmarks.bare_server"))
    ]
    pair = Pair(footprints[0].rss_mib, footprints[1].rss_mib)
    return compare("control plane afterwards, RSS", [pair], "MiB", limit=inventory.memory)


def _sides(
    stub: VMServiceAsyncStub, bare: grpc.aio.Channel, vm_ids: Sequence[str], ours: psutil.Process
) -> dict[str, tuple[Side, Side]]:
    """Ours and the reference, by method."""
    reference = child_process("benchmarks.bare_server")
    requests = itertools.cycle(
        [pb.GetVMRequest(id=vm_ids[number * _STRIDE % len(vm_ids)]) for number in range(len(vm_ids))]
    )
    list_request = pb.ListVMsRequest(page_size=PAGE_SIZE)
    bare_get = bare.unary_unary(f"/{SERVICE}/GetVM", pb.GetVMRequest.SerializeToString, VirtualMachine.FromString)
    bare_list = bare.unary_unary(
        f"/{SERVICE}/ListVMs", pb.ListVMsRequest.SerializeToString, pb.ListVMsResponse.FromString
    )
    return {
        "GetVM": (
            Side(ours, lambda: stub.GetVM(next(requests), timeout=_CALL_TIMEOUT_S)),
            Side(reference, lambda: bare_get(next(requests), timeout=_CALL_TIMEOUT_S)),
        ),
        f"ListVMs({PAGE_SIZE})": (
            Side(ours, lambda: stub.ListVMs(list_request, timeout=_CALL_TIMEOUT_S)),
            Side(reference, lambda: bare_list(list_request, timeout=_CALL_TIMEOUT_S)),
        ),
    }


async def _compare_method(name: str, sides: tuple[Side, Side], effort: ApiEffort, inventory: Inventory) -> list[Row]:
    rows: list[Row] = []
    p50_limit = inventory.list_p50 if name.startswith("ListVMs") else None
    for concurrency in inventory.concurrencies:
        tell(f"{name}, {concurrency} at a time")
        for side in sides:
            await drive(side, concurrency, effort.stretch_s / 4)  # warm caches and connections
        pairs: list[tuple[Load, Load]] = []
        for _ in range(effort.round_count):
            ours = await drive(sides[0], concurrency, effort.stretch_s)
            pairs.append((ours, await drive(sides[1], concurrency, effort.stretch_s)))
        label = f"{name} x{concurrency}"
        rows += [
            compare(f"{label} calls", [Pair(a.calls_per_s, b.calls_per_s) for a, b in pairs], "/s"),
            compare(f"{label} p50", [Pair(a.p50_ms, b.p50_ms) for a, b in pairs], "ms", limit=p50_limit),
            compare(f"{label} p99", [Pair(a.p99_ms, b.p99_ms) for a, b in pairs], "ms"),
            compare(f"{label} server CPU", [Pair(a.cpu_us_per_call, b.cpu_us_per_call) for a, b in pairs], "us/call"),
        ]
    return rows
