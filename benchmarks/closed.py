"""What it costs to be closed: the same calls through the doors as they are, and through bare ones beside them.

One process serves the same servicers at all doors (`benchmarks.closed_server`), on one CPU, and this one calls from the
others. At the bare door there is neither TLS nor a guard; at the encrypted one there is TLS alone; at the doors as they
are, TLS, who calls, what they may do, how often, and the record of it.

The rows of CPU time count what the whole server process took, which on a shared machine says more than calls a second.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from benchmarks.closed_server import DATABASE, KEY_FILE, Doors, running_doors
from benchmarks.cluster import child_process, tell
from benchmarks.driving import Call, Load, Side, drive
from benchmarks.measurement import Goal, Pair, Row, Section, compare
from benchmarks.membership import Members, admit_all_nodes
from benchmarks.records import insert_records
from limiquantix.compute.v1 import vm_service_pb2 as pb
from limiquantix.compute.v1.node_service_pb2 import UpdateHeartbeatRequest
from limiquantix.compute.v1.node_service_pb2_grpc import NodeServiceStub
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub
from limiquantix.inventory import state_hash
from limiquantix.rpc.channel import open_channel
from limiquantix.rpc.identity import CONTROL_PLANE_SERVER_NAME

TITLE = "the doors as they are against bare ones in the same process: no TLS, no guard; calls/s: higher is better"
GOAL = Goal(0.85, better="higher")
"""At most 15 % of the calls a second."""
_VM_COUNT = 1_000
_HOST_COUNT = 40
"""Each has a connection and a certificate of its own, and may make 200 calls a second."""
_DESCRIPTION = FieldMask(paths=["description"])
_CONCURRENCY = 16
_STRIDE = 37
_CALL_TIMEOUT_S = 10.0

_Credentials = Iterator[tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class ClosedEffort:
    """How much is measured: rounds of one stretch at each door, many and short."""

    round_count: int
    stretch_s: float


@dataclass(frozen=True, slots=True)
class _Comparison:
    """One way in against another, for the same call."""

    name: str
    ours: Call
    reference: Call
    goal: Goal | None = None


async def measure_closed(effort: ClosedEffort) -> Section:
    """Run this part; needs two CPUs."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        return Section("closed", TITLE, skipped="needs a CPU for the control plane and another one for its callers")
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="limiquantix-bench-")))
        vm_ids = await insert_records(directory / DATABASE, _VM_COUNT, _HOST_COUNT)
        members = await admit_all_nodes(directory / DATABASE, directory / KEY_FILE)
        doors = await stack.enter_async_context(running_doors(directory, cpus[0]))
        stack.callback(os.sched_setaffinity, 0, cpus)
        os.sched_setaffinity(0, cpus[1:])
        server = child_process("benchmarks.closed_server")
        rows: list[Row] = []
        for each in await _comparisons(stack, doors, members, vm_ids):
            rows += await _compare(each, Side(server, each.ours), Side(server, each.reference), effort)
    notes = (f"{_VM_COUNT} VMs in the database, {_CONCURRENCY} calls at a time, {_HOST_COUNT} hosts",)
    return Section("closed", TITLE, tuple(rows), notes)


async def _comparisons(
    stack: AsyncExitStack, doors: Doors, members: Members, vm_ids: Sequence[str]
) -> Sequence[_Comparison]:
    trust = grpc.ssl_channel_credentials(members.authority_pem.encode())
    bare = await stack.enter_async_context(open_channel(doors.bare))
    encrypted = await stack.enter_async_context(open_channel(doors.encrypted, trust))
    people = await stack.enter_async_context(open_channel(doors.people, trust))
    nothing: _Credentials = itertools.repeat(())
    tokens: _Credentials = itertools.cycle([(("authorization", f"Bearer {token}"),) for token in doors.tokens])
    gets, updates = _gets(vm_ids), _updates(vm_ids)

    def get_at(channel: grpc.aio.Channel, credentials: _Credentials) -> Call:
        call = VMServiceStub(channel).GetVM
        return lambda: call(next(gets), metadata=next(credentials), timeout=_CALL_TIMEOUT_S)

    def update_at(channel: grpc.aio.Channel, credentials: _Credentials) -> Call:
        call = VMServiceStub(channel).UpdateVM
        return lambda: call(next(updates), metadata=next(credentials), timeout=_CALL_TIMEOUT_S)

    return (
        _Comparison("GetVM", get_at(people, tokens), get_at(bare, nothing), GOAL),
        _Comparison("GetVM, TLS alone", get_at(encrypted, nothing), get_at(bare, nothing)),
        _Comparison("UpdateVM", update_at(people, tokens), update_at(bare, nothing)),
        _Comparison("heartbeat", *await _heartbeats(stack, doors, members)),
    )


async def _heartbeats(stack: AsyncExitStack, doors: Doors, members: Members) -> tuple[Call, Call]:
    """Beat for all hosts in turn: through connections of their own, with their certificates, and as many bare ones."""
    closed, bare = [], []
    for host in members.hosts:
        shown = host.credentials(members.authority_pem)
        request = UpdateHeartbeatRequest(node_id=host.node_id, state_hash=state_hash({}), can_self_fence=True)
        own = await stack.enter_async_context(open_channel(doors.hosts, shown, CONTROL_PLANE_SERVER_NAME))
        # Else all channels of a process to one address share a connection.
        apart = grpc.aio.insecure_channel(doors.bare, options=(("grpc.use_local_subchannel_pool", 1),))
        closed.append(partial(NodeServiceStub(own).UpdateHeartbeat, request, timeout=_CALL_TIMEOUT_S))
        bare.append(
            partial(
                NodeServiceStub(await stack.enter_async_context(apart)).UpdateHeartbeat,
                request,
                timeout=_CALL_TIMEOUT_S,
            )
        )
    closed_turns, bare_turns = itertools.cycle(closed), itertools.cycle(bare)
    return partial(_next, closed_turns), partial(_next, bare_turns)


async def _next(turns: Iterator[Call]) -> None:
    await next(turns)()


def _gets(vm_ids: Sequence[str]) -> Iterator[pb.GetVMRequest]:
    return itertools.cycle([pb.GetVMRequest(id=vm_id) for vm_id in _scattered(vm_ids)])


def _updates(vm_ids: Sequence[str]) -> Iterator[pb.UpdateVMRequest]:
    for number, vm_id in enumerate(itertools.cycle(_scattered(vm_ids))):
        yield pb.UpdateVMRequest(id=vm_id, description=f"change {number}", update_mask=_DESCRIPTION)


def _scattered(vm_ids: Sequence[str]) -> list[str]:
    return [vm_ids[number * _STRIDE % len(vm_ids)] for number in range(len(vm_ids))]


async def _compare(which: _Comparison, ours: Side, reference: Side, effort: ClosedEffort) -> list[Row]:
    tell(f"{which.name}, {_CONCURRENCY} at a time")
    for side in (ours, reference):
        # Where a VM stands is read once: what is measured is every call after the first.
        for _ in range(_VM_COUNT // _CONCURRENCY + 1):
            await asyncio.gather(*(side.call() for _ in range(_CONCURRENCY)))
    pairs: list[tuple[Load, Load]] = []
    for _ in range(effort.round_count):
        first = await drive(ours, _CONCURRENCY, effort.stretch_s)
        pairs.append((first, await drive(reference, _CONCURRENCY, effort.stretch_s)))
    return [
        compare(f"{which.name} calls", [Pair(a.calls_per_s, b.calls_per_s) for a, b in pairs], "/s", which.goal),
        compare(f"{which.name} p50", [Pair(a.p50_ms, b.p50_ms) for a, b in pairs], "ms"),
        compare(f"{which.name} server CPU", [Pair(a.cpu_us_per_call, b.cpu_us_per_call) for a, b in pairs], "us/call"),
    ]
