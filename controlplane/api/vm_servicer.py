"""VMService on the wire: decode, call the service, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty

from controlplane.api import encode
from controlplane.api.callers import caller_of
from controlplane.domain import documents
from controlplane.operations.steps import Clock
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.event_lists import EventListService
from controlplane.services.page_tokens import encode_cursor
from controlplane.services.vm_calls import VmAccess
from controlplane.services.vms import VmService
from controlplane.services.watches import WatchService
from limiquantix.compute.v1 import vm_pb2
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceServicer
from limiquantix.rpc.pipeline import CallContext


@dataclass(frozen=True, slots=True)
class VmServices:
    """All services behind the methods of VMService."""

    vms: VmService
    watches: WatchService
    events: EventListService

    @classmethod
    def of(
        cls, access: VmAccess, scheduler: SchedulerConfig, now: Clock, watches: WatchService, events: EventListService
    ) -> VmServices:
        """Make them from what they share."""
        return cls(vms=VmService(access, scheduler, now), watches=watches, events=events)


class VmServicer(VMServiceServicer):
    """Methods not defined here are documented but not in this version; they answer UNIMPLEMENTED."""

    def __init__(self, services: VmServices) -> None:
        self._vms = services.vms
        self._watches = services.watches
        self._events = services.events

    async def CreateVM(self, request: api.CreateVMRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._vms.create(request, caller_of(context, "CreateVM", request))

    async def GetVM(self, request: api.GetVMRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return documents.virtual_machine(await self._vms.get(request.id))

    async def ListVMs(self, request: api.ListVMsRequest, context: CallContext) -> api.ListVMsResponse:
        page = await self._vms.list(request)
        return api.ListVMsResponse(
            vms=[documents.virtual_machine(vm) for vm in page.items],
            next_page_token=encode_cursor(page.next_cursor, request),
            total_count=page.total_count,
        )

    async def UpdateVM(self, request: api.UpdateVMRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._vms.update(request, caller_of(context, "UpdateVM", request))

    async def DeleteVM(self, request: api.DeleteVMRequest, context: CallContext) -> Empty:
        await self._vms.delete(request, caller_of(context, "DeleteVM", request))
        return Empty()

    async def StartVM(self, request: api.StartVMRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._vms.start(request.id, caller_of(context, "StartVM", request))

    async def StopVM(self, request: api.StopVMRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._vms.stop(request, caller_of(context, "StopVM", request))

    async def RebootVM(self, request: api.RebootVMRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._vms.reboot(request, caller_of(context, "RebootVM", request))

    async def PauseVM(self, request: api.PauseVMRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._vms.pause(request.id, caller_of(context, "PauseVM", request))

    async def ResumeVM(self, request: api.ResumeVMRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._vms.resume(request.id, caller_of(context, "ResumeVM", request))

    async def TakeOverVM(self, request: api.TakeOverVMRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._vms.take_over(request, caller_of(context, "TakeOverVM", request))

    async def GetConsole(self, request: api.GetConsoleRequest, context: CallContext) -> vm_pb2.ConsoleInfo:
        return encode.console(await self._vms.console(request))

    async def GetConsoleLog(self, request: api.GetConsoleLogRequest, context: CallContext) -> api.GetConsoleLogResponse:
        log = await self._vms.console_log(request)
        return api.GetConsoleLogResponse(data=log.data, next_offset=log.next_offset, size_bytes=log.size_bytes)

    async def ListVMEvents(self, request: api.ListVMEventsRequest, context: CallContext) -> api.ListVMEventsResponse:
        return api.ListVMEventsResponse(events=await self._events.of_vm(request))

    async def WatchVM(self, request: api.WatchVMRequest, context: CallContext) -> AsyncIterator[vm_pb2.VirtualMachine]:
        async with aclosing(self._watches.vm(request)) as vms:
            async for vm in vms:
                yield vm

    async def WatchVMs(self, request: api.WatchVMsRequest, context: CallContext) -> AsyncIterator[api.VMUpdate]:
        async with aclosing(self._watches.vms(request)) as updates:
            async for update in updates:
                yield update
