"""VMService on the wire: decode, call the service, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty

from controlplane.access.visibility import EverythingVisible, Visibility
from controlplane.api import encode
from controlplane.api.callers import caller_of
from controlplane.domain import documents
from controlplane.operations.steps import Clock
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.clones import CloneService
from controlplane.services.event_lists import EventListService
from controlplane.services.metrics import MetricsService
from controlplane.services.migrations import MigrationService
from controlplane.services.page_tokens import encode_cursor
from controlplane.services.placement import NodeMemory
from controlplane.services.vm_calls import VmAccess
from controlplane.services.vm_devices import VmDeviceService
from controlplane.services.vm_guests import GuestService
from controlplane.services.vm_snapshots import SnapshotService
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
    snapshots: SnapshotService
    guests: GuestService
    devices: VmDeviceService
    clones: CloneService
    watches: WatchService
    events: EventListService
    metrics: MetricsService
    migrations: MigrationService

    @classmethod
    def of(
        cls,
        access: VmAccess,
        scheduler: SchedulerConfig,
        now: Clock,
        watches: WatchService,
        events: EventListService,
        metrics: MetricsService,
        migrations: MigrationService,
        memory: NodeMemory,
        visibility: Visibility | None = None,
    ) -> VmServices:
        """Make them from what they share; without a visibility, callers see everything."""
        visibility = visibility or EverythingVisible()
        vms = VmService(access, scheduler, now, memory, visibility)
        return cls(
            vms=vms,
            snapshots=SnapshotService(access, visibility),
            guests=GuestService(access),
            devices=VmDeviceService(access),
            clones=CloneService(access, scheduler, now, memory, visibility),
            watches=watches,
            events=events,
            metrics=metrics,
            migrations=migrations,
        )


class VmServicer(VMServiceServicer):
    """Methods not defined here are documented but not in this version; they answer UNIMPLEMENTED."""

    def __init__(self, services: VmServices) -> None:
        self._vms = services.vms
        self._clones = services.clones
        self._snapshots = services.snapshots
        self._guests = services.guests
        self._devices = services.devices
        self._watches = services.watches
        self._events = services.events
        self._metrics = services.metrics
        self._migrations = services.migrations

    async def CreateVM(self, request: api.CreateVMRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        caller = caller_of(context, "CreateVM", request)
        return await (self._clones if request.template_id else self._vms).create(request, caller)

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

    async def SuspendVM(self, request: api.SuspendVMRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._vms.suspend(request.id, caller_of(context, "SuspendVM", request))

    async def CreateSnapshot(self, request: api.CreateSnapshotRequest, context: CallContext) -> vm_pb2.Snapshot:
        return await self._snapshots.create(request, caller_of(context, "CreateSnapshot", request))

    async def ListSnapshots(self, request: api.ListSnapshotsRequest, context: CallContext) -> api.ListSnapshotsResponse:
        return api.ListSnapshotsResponse(snapshots=await self._snapshots.list(request))

    async def RevertToSnapshot(
        self, request: api.RevertToSnapshotRequest, context: CallContext
    ) -> vm_pb2.VirtualMachine:
        return await self._snapshots.revert(request, caller_of(context, "RevertToSnapshot", request))

    async def DeleteSnapshot(self, request: api.DeleteSnapshotRequest, context: CallContext) -> Empty:
        await self._snapshots.delete(request, caller_of(context, "DeleteSnapshot", request))
        return Empty()

    async def MigrateVM(self, request: api.MigrateVMRequest, context: CallContext) -> api.MigrateVMResponse:
        return await self._migrations.migrate(request, caller_of(context, "MigrateVM", request))

    async def CloneVM(self, request: api.CloneVMRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._clones.clone(request, caller_of(context, "CloneVM", request))

    async def ConvertToTemplate(
        self, request: api.ConvertToTemplateRequest, context: CallContext
    ) -> vm_pb2.VirtualMachine:
        return await self._clones.convert(request, caller_of(context, "ConvertToTemplate", request))

    async def AttachDisk(self, request: api.AttachDiskRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._devices.attach_disk(request, caller_of(context, "AttachDisk", request))

    async def DetachDisk(self, request: api.DetachDiskRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._devices.detach_disk(request, caller_of(context, "DetachDisk", request))

    async def ResizeDisk(self, request: api.ResizeDiskRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._devices.resize_disk(request, caller_of(context, "ResizeDisk", request))

    async def AttachNIC(self, request: api.AttachNICRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._devices.attach_nic(request, caller_of(context, "AttachNIC", request))

    async def DetachNIC(self, request: api.DetachNICRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._devices.detach_nic(request, caller_of(context, "DetachNIC", request))

    async def AttachCDROM(self, request: api.AttachCDROMRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._devices.attach_cdrom(request, caller_of(context, "AttachCDROM", request))

    async def DetachCDROM(self, request: api.DetachCDROMRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._devices.detach_cdrom(request, caller_of(context, "DetachCDROM", request))

    async def MountISO(self, request: api.MountISORequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._devices.mount_iso(request, caller_of(context, "MountISO", request))

    async def EjectISO(self, request: api.EjectISORequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._devices.eject_iso(request, caller_of(context, "EjectISO", request))

    async def UpdateDisk(self, request: api.UpdateDiskRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._devices.update_disk(request, caller_of(context, "UpdateDisk", request))

    async def UpdateNIC(self, request: api.UpdateNICRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._devices.update_nic(request, caller_of(context, "UpdateNIC", request))

    async def TakeOverVM(self, request: api.TakeOverVMRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._vms.take_over(request, caller_of(context, "TakeOverVM", request))

    async def GetConsole(self, request: api.GetConsoleRequest, context: CallContext) -> vm_pb2.ConsoleInfo:
        return encode.console(await self._vms.console(request))

    async def StreamMetrics(
        self, request: api.StreamMetricsRequest, context: CallContext
    ) -> AsyncIterator[vm_pb2.ResourceUsage]:
        async with aclosing(self._metrics.vm(request)) as measures:
            async for usage in measures:
                yield usage

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

    async def PingAgent(self, request: api.PingAgentRequest, context: CallContext) -> api.PingAgentResponse:
        return await self._guests.ping(request)

    async def GetGuestInfo(self, request: api.GetGuestInfoRequest, context: CallContext) -> api.GetGuestInfoResponse:
        return await self._guests.info(request)

    async def ExecuteScript(self, request: api.ExecuteScriptRequest, context: CallContext) -> api.ExecuteScriptResponse:
        return await self._guests.execute(request)

    async def ReadGuestFile(self, request: api.ReadGuestFileRequest, context: CallContext) -> api.ReadGuestFileResponse:
        return await self._guests.read_file(request)

    async def WriteGuestFile(
        self, request: api.WriteGuestFileRequest, context: CallContext
    ) -> api.WriteGuestFileResponse:
        return await self._guests.write_file(request)

    async def GuestShutdown(self, request: api.GuestShutdownRequest, context: CallContext) -> api.GuestShutdownResponse:
        return await self._guests.shut_down(request, caller_of(context, "GuestShutdown", request))

    async def SetGuestPassword(self, request: api.SetGuestPasswordRequest, context: CallContext) -> Empty:
        await self._guests.set_password(request)
        return Empty()

    async def SyncGuestTime(self, request: api.SyncGuestTimeRequest, context: CallContext) -> api.SyncGuestTimeResponse:
        return await self._guests.sync_time(request)

    async def FreezeGuest(self, request: api.FreezeGuestRequest, context: CallContext) -> api.FreezeGuestResponse:
        return await self._guests.freeze(request)

    async def ThawGuest(self, request: api.ThawGuestRequest, context: CallContext) -> api.ThawGuestResponse:
        return await self._guests.thaw(request)
