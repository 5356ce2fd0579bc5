"""The person, or program, that asks for things: over the real API, at whichever control plane answers."""

from __future__ import annotations

import asyncio
import enum
import uuid
from collections.abc import Sequence
from typing import Any

import grpc

from limiquantix.compute.v1 import ha_service_pb2 as ha_api
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.ha_service_pb2_grpc import HaServiceStub
from limiquantix.compute.v1.vm_pb2 import CpuConfig, HaPolicy, MemoryConfig, VmSpec, VmStatus
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub
from limiquantix.rpc.channel import open_channel
from tests.simulation.product.host import Host
from tests.simulation.product.loop import VirtualLoop
from tests.simulation.product.witness import Witness

CALL_S = 30.0
ATTEMPT_COUNT = 4
KEPT_OFF_S = 45.0
"""A person who said that a host is off keeps it off for so long after, by when no message of theirs is on its way."""
_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED)


class Silence(enum.Enum):
    """No answer that says what was done."""

    REFUSED = "refused"
    UNANSWERED = "unanswered"
    """It may be done at any time."""


class Operator:
    """Asks, repeats what was not answered, and tells the witness what was acknowledged."""

    def __init__(self, loop: VirtualLoop, addresses: list[str], witness: Witness) -> None:
        self._loop, self._witness = loop, witness
        channels = [open_channel(address) for address in addresses]
        self._vms = [VMServiceStub(channel) for channel in channels]
        self._ha = [HaServiceStub(channel) for channel in channels]
        self._count = 0
        self._open: dict[str, set[int]] = {}
        """Numbers of wishes for a VM that are under way, or were never answered."""
        self.ack_count = 0
        self.vm_ids: list[str] = []

    # -- VMs

    async def create(self) -> None:
        """Create a VM that is restarted elsewhere, and start it."""
        self._count += 1
        spec = VmSpec(
            cpu=CpuConfig(cores=1),
            memory=MemoryConfig(size_mib=self._loop.random.choice((64, 1024, 2048))),
            ha_policy=HaPolicy(auto_restart=True, condition=HaPolicy.ALWAYS, max_relocations=100),
        )
        request = api.CreateVMRequest(name=f"vm-{self._count}", spec=spec, start_on_create=True)
        vm = await self._ask(self._vms, "CreateVM", request, waits=self._waits())
        if not isinstance(vm, Silence):
            self._witness.created.add(vm.id)
            self.vm_ids.append(vm.id)

    async def stop(self, vm_id: str) -> None:
        """Cut a VM's power."""
        await self._wish(vm_id, VmStatus.STOPPED, "StopVM", api.StopVMRequest(id=vm_id, force=True))

    async def start(self, vm_id: str) -> None:
        """Start a VM."""
        await self._wish(vm_id, VmStatus.RUNNING, "StartVM", api.StartVMRequest(id=vm_id))

    async def migrate(self, vm_id: str) -> None:
        """Move a VM to wherever the scheduler likes."""
        request = api.MigrateVMRequest(vm_id=vm_id, live=True)
        await self._ask(self._vms, "MigrateVM", request, waits=self._waits())

    async def delete(self, vm_id: str) -> None:
        """Delete a VM, running or not."""
        self._witness.doomed.add(vm_id)
        if vm_id in self.vm_ids:
            self.vm_ids.remove(vm_id)
        answer = await self._ask(self._vms, "DeleteVM", api.DeleteVMRequest(id=vm_id, force=True))
        if not isinstance(answer, Silence):
            self._witness.deleted.add(vm_id)

    # -- high availability

    async def disarm(self) -> None:
        """Have nothing fenced, killed or restarted."""
        await self._set("DisarmHa", ha_api.DisarmHaRequest(reason="work on the network"))

    async def arm(self) -> None:
        """End that."""
        await self._set("ArmHa", ha_api.ArmHaRequest())

    async def confirm_dead(self, host: Host) -> None:
        """Say that a host is off, which it is, and see to it that it stays so for as long as that may be heard."""
        node_id = self._witness.node_id(host.name)
        if host.is_on or not node_id:
            return
        host.is_kept_off = True
        request = ha_api.ConfirmNodeDeadRequest(node_id=node_id, hostname=host.name, statement="pulled both cords")
        await self._ask(self._ha, "ConfirmNodeDead", request, attempt_count=1)
        await asyncio.sleep(KEPT_OFF_S)
        host.is_kept_off = False
        host.power_on()

    async def _set(self, method: str, request: Any) -> None:
        settings = await self._ask(self._ha, method, request)
        if not isinstance(settings, Silence):
            self._witness.settings_version = max(self._witness.settings_version, settings.version)

    # -- asking

    async def _wish(self, vm_id: str, state: int, method: str, request: Any) -> None:
        """Ask for what a VM shall be; what is acknowledged holds until somebody asks for something else."""
        self._count += 1
        number, under_way = self._count, self._open.setdefault(vm_id, set())
        is_alone = not under_way
        under_way.add(number)
        self._witness.wishes.pop(vm_id, None)
        waits = self._waits()
        answer = await self._ask(self._vms, method, request, waits=waits)
        if answer is Silence.UNANSWERED:
            return
        under_way.discard(number)
        if waits and is_alone and not under_way and not isinstance(answer, Silence):
            self._witness.wishes[vm_id] = state

    def _waits(self) -> bool:
        return self._loop.random.random() < 0.6

    async def _ask(
        self,
        stubs: Sequence[Any],
        method: str,
        request: Any,
        attempt_count: int = ATTEMPT_COUNT,
        waits: bool = True,
    ) -> Any | Silence:
        """Ask until it is answered.

        Args:
            waits: for what is asked to be done; otherwise the answer only acknowledges that it will be.
        """
        metadata = (("limiquantix-request-id", str(uuid.uuid4())), ("limiquantix-wait", str(waits).lower()))
        for _ in range(attempt_count):
            call = getattr(self._loop.random.choice(stubs), method)(request, timeout=CALL_S, metadata=metadata)
            try:
                answer = await call
            except grpc.aio.AioRpcError as error:
                self._loop.note(f"operator: {method}: {error.code().name} {error.details()}")
                if error.code() is grpc.StatusCode.INTERNAL:
                    raise
                if error.code() not in _AGAIN:
                    return Silence.REFUSED
                await asyncio.sleep(2.0)
            else:
                self.ack_count += 1
                trailing = dict(await call.trailing_metadata())
                if operation_id := trailing.get("limiquantix-operation-id"):
                    self._witness.operation_ids.add(operation_id)
                self._loop.note(f"operator: {method} is done")
                return answer
        return Silence.UNANSWERED
