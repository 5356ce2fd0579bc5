"""NodeDaemonService: what the control plane may ask of this host.

Methods of the contract that are not overridden here answer UNIMPLEMENTED. How requests are fenced and queued is in
`nodedaemon.commands`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from google.protobuf.empty_pb2 import Empty

from hypervisor.base import Hypervisor
from hypervisor.types import PowerState
from limiquantix.node.v1 import node_daemon_pb2 as pb
from limiquantix.node.v1 import node_daemon_pb2_grpc
from nodedaemon.commands import Commands, vm_id_of
from nodedaemon.disk_copies import DiskCopies
from nodedaemon.disk_images import DiskImages
from nodedaemon.encode import to_status
from nodedaemon.encode_metrics import add_device_usage, to_node_metrics
from nodedaemon.event_stream import EventStreams
from nodedaemon.first_boot_media import FirstBootMedia
from nodedaemon.host_meter import HostMeter
from nodedaemon.host_report import HostReport
from nodedaemon.load_watch import LoadWatch
from nodedaemon.metrics_sampler import MetricsSampler
from nodedaemon.nic_bandwidth import NicBandwidths
from nodedaemon.observer import VmObserver
from nodedaemon.self_fencing.keeper import SelfFencing
from nodedaemon.storage_paths import StoragePaths
from nodedaemon.templates import Templates
from nodedaemon.vm_consoles import VmConsoles
from nodedaemon.vm_creation import VmCreation
from nodedaemon.vm_devices import VmDevices
from nodedaemon.vm_guests import VmGuests
from nodedaemon.vm_lifecycle import VmLifecycle
from nodedaemon.vm_migrations import MigrationSettings, VmMigrations
from nodedaemon.vm_power import VmPower
from nodedaemon.vm_protection import VmProtection
from nodedaemon.vm_resizing import VmResizing
from nodedaemon.vm_snapshots import VmSnapshots
from nodedaemon.vm_starts import VmStarts

SERVICE = pb.DESCRIPTOR.services_by_name["NodeDaemonService"].full_name

DEFAULT_LOG_BYTES = 64 * 2**10
DEFAULT_METRICS_INTERVAL_S = 5
STATUS_USAGE_AGE_S = 15.0
"""How old counters of disks and network cards may be that a status shows; it does not wait for newer ones."""

_OFF = (PowerState.STOPPED, PowerState.CRASHED)
_IN_MEMORY = (PowerState.RUNNING, PowerState.PAUSED)


class NodeDaemonServicer(node_daemon_pb2_grpc.NodeDaemonServiceServicer):
    """The service; requests come validated by the contract's rules, errors leave as `ApiError`."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        observer: VmObserver,
        commands: Commands,
        images: DiskImages,
        paths: StoragePaths,
        report: HostReport,
        migration_settings: MigrationSettings | None = None,
        fencing: SelfFencing | None = None,
        is_ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self._hypervisor = hypervisor
        self._observer = observer
        self._commands = commands
        self._report = report
        self._protection = VmProtection(hypervisor, fencing)
        self.starts = VmStarts(hypervisor, commands, self._protection, is_ready=is_ready)
        templates, first_boot = Templates(paths), FirstBootMedia(paths)
        report.tell_templates(templates.all)
        copies = DiskCopies(hypervisor, commands, images, paths, templates)
        self._lifecycle = VmLifecycle(
            hypervisor,
            observer,
            commands,
            images=images,
            paths=paths,
            templates=templates,
            first_boot=first_boot,
            creation=VmCreation(hypervisor, images, copies, first_boot),
            protection=self._protection,
        )
        self._power = VmPower(
            hypervisor, commands, templates=templates, protection=self._protection, starts=self.starts
        )
        self._started_s = time.monotonic()
        self._consoles = VmConsoles(hypervisor)
        self.bandwidths = NicBandwidths(hypervisor)
        self._devices = VmDevices(hypervisor, commands, images, paths, templates, self.bandwidths)
        self._guests = VmGuests(hypervisor, commands)
        self._snapshots = VmSnapshots(hypervisor, commands, templates)
        self._resizing = VmResizing(hypervisor, observer, commands, self._lifecycle.decode, self._lifecycle.redefine)
        self.migrations = VmMigrations(
            hypervisor,
            commands,
            images,
            paths,
            first_boot=first_boot,
            bandwidths=self.bandwidths,
            templates=templates,
            settings=migration_settings or MigrationSettings(),
            node_id=lambda: report.node_id,
        )
        self._metrics = MetricsSampler(hypervisor, HostMeter(hypervisor, paths.root))
        self._events = EventStreams(hypervisor, watch_load=lambda: LoadWatch(HostMeter(hypervisor, paths.root)))

    async def close(self) -> None:
        """End consoles and readings that are under way."""
        await self.migrations.close()
        await self._guests.close()
        await self._consoles.close()
        await self._metrics.close()

    async def HealthCheck(self, request: pb.HealthCheckRequest, context: Any) -> pb.HealthCheckResponse:
        """Say whether this daemon and its hypervisor work; answers even when they do not."""
        return await self._report.health(int(time.monotonic() - self._started_s))

    async def GetNodeInfo(self, request: Empty, context: Any) -> pb.NodeInfoResponse:
        """Describe this host."""
        return await self._report.node_info()

    async def CreateVM(self, request: pb.CreateVMOnNodeRequest, context: Any) -> pb.CreateVMOnNodeResponse:
        """Make the images and define the VM; all or nothing. Idempotent for the same configuration."""
        return await self._lifecycle.create(request)

    async def AdoptVM(self, request: pb.CreateVMOnNodeRequest, context: Any) -> pb.CreateVMOnNodeResponse:
        """Define a VM whose disks are here already, since the host that it was on shares this storage; it stays off.

        Its first-boot medium is made if it is not there. What lay on the other host alone is gone: the firmware's
        variables begin as the template has them, a TPM's state begins anew. Idempotent.
        """
        return await self._lifecycle.adopt(request)

    async def ReleaseVM(self, request: pb.VMIdRequest, context: Any) -> Empty:
        """Undefine a VM that is off and was started on another host, whose images are these now; they stay."""
        await self._lifecycle.release(request)
        return Empty()

    async def SetVMProtection(self, request: pb.SetVMProtectionRequest, context: Any) -> Empty:
        """Note whether the VM ends with the host's lease."""
        await self._lifecycle.set_protection(request)
        return Empty()

    async def ReconfigureVM(self, request: pb.ReconfigureVMRequest, context: Any) -> Empty:
        """Redefine a VM that is off: new disks are made, larger ones grown; images of disks left out stay."""
        await self._lifecycle.reconfigure(request)
        return Empty()

    async def ResizeVM(self, request: pb.ReconfigureVMRequest, context: Any) -> pb.ResizeVMResponse:
        """Redefine a VM, running or not, and give what runs its new size as far as can be."""
        return await self._resizing.resize(request)

    async def StartVM(self, request: pb.VMIdRequest, context: Any) -> Empty:
        """Start it."""
        await self._power.start(request)
        return Empty()

    async def StopVM(self, request: pb.StopVMRequest, context: Any) -> Empty:
        """Ask the guest to shut down, and wait: 30 s unless the request says otherwise, or until a newer command."""
        await self._power.stop(request)
        return Empty()

    async def ForceStopVM(self, request: pb.VMIdRequest, context: Any) -> Empty:
        """Pull the plug."""
        await self._power.force_stop(request)
        return Empty()

    async def RebootVM(self, request: pb.VMIdRequest, context: Any) -> Empty:
        """Reboot the guest; waits until that begins, or until a newer command."""
        await self._power.reboot(request)
        return Empty()

    async def PauseVM(self, request: pb.VMIdRequest, context: Any) -> Empty:
        """Stop its vCPUs."""
        await self._power.pause(request)
        return Empty()

    async def ResumeVM(self, request: pb.VMIdRequest, context: Any) -> Empty:
        """Let its vCPUs run again."""
        await self._power.resume(request)
        return Empty()

    async def SuspendVM(self, request: pb.VMIdRequest, context: Any) -> Empty:
        """Save its memory to disk and let its process end."""
        await self._power.suspend(request)
        return Empty()

    async def CreateSnapshot(self, request: pb.CreateSnapshotRequest, context: Any) -> pb.SnapshotResponse:
        """Save the VM's disks, and its memory if asked for."""
        return await self._snapshots.create(request)

    async def RevertSnapshot(self, request: pb.RevertSnapshotRequest, context: Any) -> Empty:
        """Put the VM back to a snapshot."""
        vm_id = vm_id_of(request)
        self._protection.require_lease(vm_id)  # it may run afterwards
        await self._snapshots.revert(request)
        await self._lifecycle.renew_protection(vm_id)
        return Empty()

    async def DeleteSnapshot(self, request: pb.DeleteSnapshotRequest, context: Any) -> Empty:
        """Remove a snapshot and keep its children."""
        await self._snapshots.delete(request)
        return Empty()

    async def ListSnapshots(self, request: pb.VMIdRequest, context: Any) -> pb.ListSnapshotsResponse:
        """Read a VM's snapshots, parents before children."""
        return await self._snapshots.list(request)

    async def DeleteVM(self, request: pb.VMIdRequest, context: Any) -> Empty:
        """Remove the definition, then the images; refused while it runs. Succeeds if it does not exist."""
        await self._lifecycle.delete(request)
        return Empty()

    async def GetVMStatus(self, request: pb.VMIdRequest, context: Any) -> pb.VMStatusResponse:
        """Say what the VM is now, and what it uses unless only its state is asked for."""
        vm_id = vm_id_of(request)
        observed = await self._observer.read(vm_id, with_memory=not request.state_only)
        status = to_status(observed)
        if not request.state_only and observed.status.state in _IN_MEMORY:
            usage = self._metrics.newest(vm_id, STATUS_USAGE_AGE_S)
            if usage is not None:
                add_device_usage(status.resource_usage, usage)
        return status

    async def ListVMs(self, request: Empty, context: Any) -> pb.ListVMsOnNodeResponse:
        """Every VM of this host, also those LimiQuantix did not define."""
        return pb.ListVMsOnNodeResponse(vms=[to_status(vm) for vm in await self._observer.read_all()])

    async def GetConsole(self, request: pb.VMIdRequest, context: Any) -> pb.ConsoleInfoResponse:
        """Make a one-time entry to the VM's display."""
        return await self._consoles.open(pb.OpenConsoleRequest(vm_id=request.vm_id))

    async def OpenConsole(self, request: pb.OpenConsoleRequest, context: Any) -> pb.ConsoleInfoResponse:
        """Make a one-time entry to one of the VM's consoles."""
        return await self._consoles.open(request)

    async def StreamMetrics(self, request: pb.StreamMetricsRequest, context: Any) -> AsyncIterator[pb.NodeMetrics]:
        """Send measures of the host and its VMs: every 5 s unless the request says otherwise."""
        async with aclosing(self._metrics.stream(request.interval_seconds or DEFAULT_METRICS_INTERVAL_S)) as samples:
            async for sample in samples:
                yield to_node_metrics(sample)

    async def StreamEvents(self, request: Empty, context: Any) -> AsyncIterator[pb.NodeEvent]:
        """Send what the hypervisor tells of its VMs, and when the host has more load than it can carry."""
        async with aclosing(self._events.events()) as events:
            async for event in events:
                yield event

    async def GetConsoleLog(self, request: pb.GetConsoleLogRequest, context: Any) -> pb.GetConsoleLogResponse:
        """Read what the guest wrote to its serial console."""
        max_bytes = request.max_bytes or DEFAULT_LOG_BYTES
        log = await self._commands.read(
            request, lambda vm_id: self._hypervisor.read_console_log(vm_id, request.offset, max_bytes)
        )
        return pb.GetConsoleLogResponse(data=log.data, next_offset=log.next_offset, size_bytes=log.size_bytes)

    async def AttachDisk(self, request: pb.AttachDiskRequest, context: Any) -> Empty:
        """Attach a disk, and make its image if it is not there."""
        await self._devices.attach_disk(request)
        return Empty()

    async def DetachDisk(self, request: pb.DetachDiskRequest, context: Any) -> Empty:
        """Take a disk away."""
        await self._devices.detach_disk(request)
        return Empty()

    async def ResizeDisk(self, request: pb.ResizeDiskRequest, context: Any) -> Empty:
        """Grow a disk."""
        await self._devices.resize_disk(request)
        return Empty()

    async def UpdateDisk(self, request: pb.UpdateDiskRequest, context: Any) -> Empty:
        """Replace a disk's ceilings."""
        await self._devices.update_disk(request)
        return Empty()

    async def AttachNIC(self, request: pb.AttachNICRequest, context: Any) -> Empty:
        """Attach a network card."""
        await self._devices.attach_nic(request)
        return Empty()

    async def DetachNIC(self, request: pb.DetachNICRequest, context: Any) -> Empty:
        """Take a network card away."""
        await self._devices.detach_nic(request)
        return Empty()

    async def UpdateNIC(self, request: pb.UpdateNICRequest, context: Any) -> Empty:
        """Plug a card's cable in or out, and replace its ceilings."""
        await self._devices.update_nic(request)
        return Empty()

    async def AttachCDROM(self, request: pb.AttachCDROMRequest, context: Any) -> Empty:
        """Add a CD-ROM drive."""
        await self._devices.attach_cdrom(request)
        return Empty()

    async def DetachCDROM(self, request: pb.DetachCDROMRequest, context: Any) -> Empty:
        """Take a CD-ROM drive away."""
        await self._devices.detach_cdrom(request)
        return Empty()

    async def ChangeMedia(self, request: pb.ChangeMediaRequest, context: Any) -> Empty:
        """Put a medium into a drive or take it out."""
        await self._devices.change_media(request)
        return Empty()

    async def PingGuestAgent(self, request: pb.GuestRequest, context: Any) -> pb.PingGuestAgentResponse:
        """Ask whether the guest's agent is there."""
        return await self._guests.ping(request)

    async def GetGuestInfo(self, request: pb.GetGuestInfoRequest, context: Any) -> pb.GetGuestInfoResponse:
        """Ask the agent about the system inside."""
        return await self._guests.info(request)

    async def ExecuteInGuest(self, request: pb.ExecuteInGuestRequest, context: Any) -> pb.ExecuteInGuestResponse:
        """Run a program in the guest."""
        return await self._guests.execute(request)

    async def ReadGuestFile(self, request: pb.ReadGuestFileRequest, context: Any) -> pb.ReadGuestFileResponse:
        """Read the beginning of a file of the guest."""
        return await self._guests.read_file(request)

    async def WriteGuestFile(self, request: pb.WriteGuestFileRequest, context: Any) -> Empty:
        """Replace a file of the guest."""
        await self._guests.write_file(request)
        return Empty()

    async def ShutdownGuest(self, request: pb.ShutdownGuestRequest, context: Any) -> Empty:
        """Have the agent shut the guest down or reboot it."""
        await self._guests.shut_down(request)
        return Empty()

    async def SetGuestPassword(self, request: pb.SetGuestPasswordRequest, context: Any) -> Empty:
        """Set a user's password in the guest."""
        await self._guests.set_password(request)
        return Empty()

    async def SyncGuestTime(self, request: pb.GuestRequest, context: Any) -> pb.SyncGuestTimeResponse:
        """Set the guest's clock to the host's."""
        return await self._guests.sync_time(request)

    async def FreezeGuest(self, request: pb.FreezeGuestRequest, context: Any) -> pb.FreezeGuestResponse:
        """Hold the guest's writes for a while."""
        return await self._guests.freeze(request)

    async def ThawGuest(self, request: pb.GuestRequest, context: Any) -> pb.ThawGuestResponse:
        """Let the guest's writes go on."""
        return await self._guests.thaw(request)

    async def PrepareMigration(self, request: pb.PrepareMigrationRequest, context: Any) -> pb.MigrationToken:
        """Get ready for a VM of another host."""
        return await self._protection.around_arrival(request, lambda: self.migrations.prepare(request))

    async def ReceiveMigration(self, request: pb.MigrationToken, context: Any) -> Empty:
        """Let a VM of another host in, once."""
        self._protection.require_lease(vm_id_of(request))
        await self.migrations.receive(request)
        return Empty()

    async def MigrateVM(self, request: pb.MigrateVMRequest, context: Any) -> AsyncIterator[pb.MigrationProgress]:
        """Send a VM to another host, or follow that; twice a second."""
        async with aclosing(self.migrations.migrate(request)) as messages:
            async for message in messages:
                yield message

    async def GetMigration(self, request: pb.MigrationRequest, context: Any) -> pb.MigrationProgress:
        """Say how far a migration to another host is."""
        return await self.migrations.get(request)

    async def CancelMigration(self, request: pb.MigrationRequest, context: Any) -> Empty:
        """Stop sending a VM."""
        await self.migrations.cancel(request)
        return Empty()

    async def EndMigration(self, request: pb.EndMigrationRequest, context: Any) -> Empty:
        """Tidy up after a migration."""
        await self.migrations.end(request)
        await self._lifecycle.follow_migration(request)
        return Empty()

    async def ForecastMigration(self, request: pb.MigrationForecastRequest, context: Any) -> pb.MigrationForecast:
        """Measure what a migration would carry."""
        return await self.migrations.forecast(request)

    async def SettleDevices(self, request: pb.SettleDevicesRequest, context: Any) -> Empty:
        """Make a VM's devices these and no others."""
        await self._devices.settle(request)
        return Empty()
