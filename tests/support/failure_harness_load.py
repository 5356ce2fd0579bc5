"""Callers who create, start, stop, change and delete VMs while everything is being killed around them.

Each repeats what was not answered, with the same request id, and remembers what it was promised.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import VirtualMachine, VmSpec
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub
from limiquantix.errors import ApiError, Code, Reason
from limiquantix.rpc.channel import open_channel
from limiquantix.rpc.identity import CONTROL_PLANE_SERVER_NAME
from limiquantix.rpc.status import from_rpc_error
from tests.support.entry import Entry

CALL_DEADLINE_S = 20.0
ANSWER_DEADLINE_S = 120.0
"""How long a caller repeats one request: far longer than everything needs to be back."""

_PAUSE_S = 0.1
_SAME_ANSWER_COUNT = 3
"""As often the server has to answer that a host is away, until it is believed to be the outcome and not the moment."""

_INEXCUSABLE = frozenset({Code.INTERNAL, Code.UNKNOWN, Code.DATA_LOSS, Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED})
MAX_VMS_OF_A_CALLER = 4

Call = Callable[[Any, dict[str, Any]], Awaitable[Any]]
"""Calls a method of a stub, whose type for asynchronous channels exists for type checkers only."""


@dataclass
class Promise:
    """What callers were told of one VM."""

    name: str
    vm_id: str = ""
    """"" until its creation was answered."""
    was_refused: bool = False
    """Its creation failed, so it must not be there."""
    may_be_deleted: bool = False
    is_deleted: bool = False


@dataclass
class Ledger:
    """All promises, and how calls ended."""

    promises: list[Promise] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    repeated_count: int = 0

    @property
    def answered_count(self) -> int:
        """How many requests were answered in the end."""
        return sum(self.outcomes.values())

    def broken(self, rows: dict[str, str]) -> list[str]:
        """Say which promises were not kept; `rows` are the names of the VMs that there are, by id."""
        names = set(rows.values())
        found = list(self.complaints)
        for promise in self.promises:
            if promise.was_refused and promise.name in names:
                found.append(f"{promise.name} is there, but its creation failed")
            if promise.vm_id and promise.vm_id not in rows and not promise.may_be_deleted:
                found.append(f"{promise.name} is lost")
            if promise.is_deleted and promise.vm_id in rows:
                found.append(f"{promise.name} was deleted and is there")
        found += [f"{name} was asked for by nobody" for name in names - {promise.name for promise in self.promises}]
        return found


class Caller:
    """One of them; `run` until it is told to stop.

    Args:
        entry: says as whom it calls the control planes at the addresses.
        spec: of every VM it creates.
        stop_timeout_s: what a guest gets to shut down.
    """

    def __init__(
        self,
        number: int,
        addresses: Sequence[str],
        entry: Entry,
        ledger: Ledger,
        seed: int,
        spec: VmSpec,
        stop_timeout_s: int,
    ) -> None:
        self._number = number
        self._random = random.Random(f"{seed}-{number}")
        credentials = entry.credentials()
        self._channels = [open_channel(address, credentials, CONTROL_PLANE_SERVER_NAME) for address in addresses]
        self._stubs = [VMServiceStub(channel) for channel in self._channels]
        self._at = number % len(self._stubs)
        self._ledger = ledger
        self._spec = spec
        self._stop_timeout_s = stop_timeout_s
        self._mine: list[Promise] = []
        self._made_count = 0

    async def run(self, until: asyncio.Event) -> None:
        """Ask for one thing after the other."""
        try:
            while not until.is_set():
                await self._something()
        finally:
            for channel in self._channels:
                await channel.close()

    async def _something(self) -> None:
        has_room = len(self._mine) < MAX_VMS_OF_A_CALLER
        if not self._mine or (has_room and self._random.random() < 0.5):
            await self._create()
            return
        others = [promise for promise in self._ledger.promises if promise.vm_id and not promise.is_deleted]
        # Mostly its own, sometimes that of somebody else who may want something too.
        promise = self._random.choice(self._mine if self._random.random() < 0.8 or not others else others)
        wishes = [self._start, self._start, self._stop, self._force_stop, self._label, self._delete]
        await self._random.choice(wishes)(promise)

    async def _create(self) -> None:
        self._made_count += 1
        promise = Promise(f"vm-{self._number}-{self._made_count}")
        self._ledger.promises.append(promise)
        request = api.CreateVMRequest(name=promise.name, spec=self._spec, start_on_create=self._random.random() < 0.5)
        answer = await self._ask("create", lambda stub, how: stub.CreateVM(request, **how))
        if isinstance(answer, VirtualMachine):
            promise.vm_id = answer.id
            self._mine.append(promise)
        else:
            promise.was_refused = True

    async def _start(self, promise: Promise) -> None:
        request = api.StartVMRequest(id=promise.vm_id)
        await self._ask("start", lambda stub, how: stub.StartVM(request, **how))

    async def _stop(self, promise: Promise) -> None:
        request = api.StopVMRequest(id=promise.vm_id, timeout_sec=self._stop_timeout_s)
        await self._ask("stop", lambda stub, how: stub.StopVM(request, **how))

    async def _force_stop(self, promise: Promise) -> None:
        request = api.StopVMRequest(id=promise.vm_id, force=True)
        await self._ask("force stop", lambda stub, how: stub.StopVM(request, **how))

    async def _label(self, promise: Promise) -> None:
        request = api.UpdateVMRequest(id=promise.vm_id, labels={"n": str(self._random.randrange(1000))})
        await self._ask("label", lambda stub, how: stub.UpdateVM(request, **how))

    async def _delete(self, promise: Promise) -> None:
        promise.may_be_deleted = True
        request = api.DeleteVMRequest(id=promise.vm_id, force=self._random.random() < 0.7)
        answer = await self._ask("delete", lambda stub, how: stub.DeleteVM(request, **how))
        if not isinstance(answer, ApiError) or answer.code is Code.NOT_FOUND:
            promise.is_deleted = True
            self._mine = [each for each in self._mine if each is not promise]

    async def _ask(self, what: str, call: Call) -> Any:
        """Ask until there is an answer; returns it, or the error that it is."""
        how = {"metadata": (("limiquantix-request-id", str(uuid.uuid4())),), "timeout": CALL_DEADLINE_S}
        give_up_s = time.monotonic() + ANSWER_DEADLINE_S
        same_count = 0
        while True:
            try:
                answer = await call(self._stubs[self._at], how)
            except grpc.aio.AioRpcError as error:
                refusal = from_rpc_error(error, peer="the control plane")
            else:
                self._ledger.outcomes[f"{what}: OK"] += 1
                return answer
            if refusal.code in _INEXCUSABLE:
                self._ledger.complaints.append(f"{what} was answered by {refusal.code.name}: {refusal!r}")
            same_count = same_count + 1 if _may_be_final(refusal) else 0
            is_to_be_repeated = refusal.code is Code.UNAVAILABLE or _is_impatience(refusal)
            if not is_to_be_repeated or same_count >= _SAME_ANSWER_COUNT:
                self._ledger.outcomes[f"{what}: {refusal.code.name} {refusal.reason}"] += 1
                return refusal
            if time.monotonic() > give_up_s:
                self._ledger.complaints.append(f"{what} was not answered in {ANSWER_DEADLINE_S:g} s: {refusal!r}")
                return refusal
            self._ledger.repeated_count += 1
            self._at = (self._at + 1) % len(self._stubs)
            await asyncio.sleep(_PAUSE_S)


def _may_be_final(refusal: ApiError) -> bool:
    """Whether a host is said to be away, not the control plane or its database."""
    is_of_transport = refusal.metadata.get("peer") == "the control plane"
    return refusal.code is Code.UNAVAILABLE and not is_of_transport and refusal.reason != Reason.STATE_UNAVAILABLE


def _is_impatience(refusal: ApiError) -> bool:
    """Whether only our own patience ended."""
    return refusal.code is Code.DEADLINE_EXCEEDED and refusal.metadata.get("peer") == "the control plane"
