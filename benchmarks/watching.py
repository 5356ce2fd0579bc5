"""How late 500 watchers hear of a change, against a bare server that sends the same bytes to as many streams.

Changes are made one after the other through the API. The time runs from when the client sends the change until each
watcher's client has the message: so ours includes the change itself with its durable transactions, and both include the
watchers' own work, which on two CPUs is most of it: 500 messages to be received at once.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from benchmarks.bare_server import SERVICE, running_bare_server
from benchmarks.cluster import child_process, database_path, running_cluster, tell
from benchmarks.measurement import Pair, Section, compare, percentile
from benchmarks.memory import read_footprint
from benchmarks.records import insert_records
from benchmarks.workers import Worker, ask_all, running_workers
from controlplane.cli.dev.stack import HypervisorChoice
from limiquantix.compute.v1 import vm_service_pb2 as pb
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub
from limiquantix.rpc.channel import open_channel

TITLE = "time until 500 watchers have a change, ours against a bare grpc.aio server; lower is better"
WATCHER_COUNT = 500
PROCESS_COUNT = 2
CHANGES_PER_STRETCH = 20
VM_COUNT = 20
_PAUSE_S = 0.1
_CALL_TIMEOUT_S = 10.0

Publish = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class WatchEffort:
    """How much is measured: rounds of one stretch each side."""

    round_count: int


async def measure_watching(effort: WatchEffort) -> Section:
    """Run this part."""

    async def prepare(data_dir: Path) -> None:
        vm_ids.extend(await insert_records(database_path(data_dir), VM_COUNT))

    vm_ids: list[str] = []
    async with (
        running_cluster(HypervisorChoice.MOCK, prepare) as measured,
        measured.open_channel() as channel,
        running_bare_server(measured.data_dir / "bare", {}) as bare_address,
        open_channel(bare_address) as bare,
        running_workers("watch_worker", PROCESS_COUNT) as ours,
        running_workers("watch_worker", PROCESS_COUNT) as theirs,
    ):
        stub, ids, change_ms = VMServiceStub(channel), itertools.cycle(vm_ids), list[float]()
        pattern = pb.VMUpdate(
            type=pb.VMUpdate.MODIFIED, vm=await stub.GetVM(pb.GetVMRequest(id=vm_ids[0]), timeout=_CALL_TIMEOUT_S)
        )
        publish_bare = bare.unary_unary(f"/{SERVICE}/Publish", pb.VMUpdate.SerializeToString, Empty.FromString)

        async def change() -> None:
            request = pb.UpdateVMRequest(id=next(ids), description=_now())
            request.update_mask.paths.append("description")
            began_s = time.perf_counter()
            await stub.UpdateVM(request, timeout=_CALL_TIMEOUT_S)
            change_ms.append(1000 * (time.perf_counter() - began_s))

        async def send() -> None:
            pattern.vm.description = _now()
            await publish_bare(pattern, timeout=_CALL_TIMEOUT_S)

        tell(f"{WATCHER_COUNT} watchers, {effort.round_count} rounds")
        each = WATCHER_COUNT // PROCESS_COUNT
        method = "/limiquantix.compute.v1.VMService/WatchVMs"
        await ask_all(
            ours,
            do="open",
            address=measured.cluster.grpc_address,
            method=method,
            count=each,
            keys=measured.keys,
            authority_pem=measured.authority_pem,
        )
        await ask_all(theirs, do="open", address=bare_address, method=f"/{SERVICE}/Watch", count=each)
        pairs: list[tuple[list[float], list[float]]] = []
        for _ in range(effort.round_count):
            late = await _stretch(change, ours)
            pairs.append((late, await _stretch(send, theirs)))
        processes = (measured.control_plane, child_process("benchmarks.bare_server"))
        footprints = [await asyncio.to_thread(read_footprint, process.pid) for process in processes]
    rows = [
        compare(f"delivery {name}", [Pair(percentile(a, share), percentile(b, share)) for a, b in pairs], "ms")
        for name, share in (("p50", 0.5), ("p99", 0.99))
    ]
    rows.append(compare("server with 500 watchers, RSS", [Pair(footprints[0].rss_mib, footprints[1].rss_mib)], "MiB"))
    note = f"of ours, the change itself takes its caller {percentile(change_ms, 0.5):.1f} ms at the median"
    return Section("watches", TITLE, tuple(rows), (note,))


async def _stretch(publish: Publish, workers: list[Worker]) -> list[float]:
    """Publish some changes, and return how late all watchers heard of them, in milliseconds."""
    expected = CHANGES_PER_STRETCH * WATCHER_COUNT // len(workers)
    collecting = asyncio.gather(*(worker.ask(do="collect", count=expected) for worker in workers))
    for _ in range(CHANGES_PER_STRETCH):
        await publish()
        await asyncio.sleep(_PAUSE_S)
    return [late for answer in await collecting for late in answer["late_ms"]]


def _now() -> str:
    return str(time.monotonic_ns())
