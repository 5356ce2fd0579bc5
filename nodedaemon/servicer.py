"""NodeDaemonService: what the control plane may ask of this host.

Methods of the contract that are not overridden here answer UNIMPLEMENTED. How requests are fenced and queued is in
`nodedaemon.commands`.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from google.protobuf.empty_pb2 import Empty

from hypervisor.base import Hypervisor
from hypervisor.errors import Unavailable, VmNotFound, WrongState
from hypervisor.types import PowerState, VmStatus
from limiquantix.errors import FailedPrecondition, Reason
from limiquantix.node.v1 import node_daemon_pb2 as pb
from limiquantix.node.v1 import node_daemon_pb2_grpc
from nodedaemon.commands import CREATE_DEADLINE_S, POWER_DEADLINE_S, Commands, vm_id_of
from nodedaemon.decode import DecodedVm, decode_vm
from nodedaemon.disk_images import DiskImages
from nodedaemon.encode import to_status
from nodedaemon.host_report import AGENT_VERSION, HostReport
from nodedaemon.observer import READ_DEADLINE_S, VmObserver
from nodedaemon.storage_paths import StoragePaths

SERVICE = pb.DESCRIPTOR.services_by_name["NodeDaemonService"].full_name

DEFAULT_STOP_TIMEOUT_S = 30
DEFAULT_LOG_BYTES = 64 * 2**10

_OFF = (PowerState.STOPPED, PowerState.CRASHED)


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
    ) -> None:
        self._hypervisor = hypervisor
        self._observer = observer
        self._commands = commands
        self._images = images
        self._paths = paths
        self._report = report
        self._started_s = time.monotonic()

    async def HealthCheck(self, request: pb.HealthCheckRequest, context: Any) -> pb.HealthCheckResponse:
        """Say whether this daemon and its hypervisor work; answers even when they do not."""
        response = pb.HealthCheckResponse(version=AGENT_VERSION, uptime_seconds=int(time.monotonic() - self._started_s))
        try:
            async with asyncio.timeout(READ_DEADLINE_S):
                response.healthy = (await self._hypervisor.health()).healthy
                capabilities = await self._hypervisor.capabilities()
            response.hypervisor, response.hypervisor_version = capabilities.name, capabilities.version
        except (Unavailable, TimeoutError):
            response.healthy = False
        return response

    async def GetNodeInfo(self, request: Empty, context: Any) -> pb.NodeInfoResponse:
        """Describe this host."""
        return await self._report.node_info()

    async def CreateVM(self, request: pb.CreateVMOnNodeRequest, context: Any) -> pb.CreateVMOnNodeResponse:
        """Make the images and define the VM; all or nothing. Idempotent for the same configuration."""
        decoded = await self._decode(request)
        vm_id = decoded.config.vm_id
        is_new = await self._commands.change(
            request, lambda: self._create(vm_id, decoded), deadline_s=CREATE_DEADLINE_S
        )
        message = "created" if is_new else "exists with this configuration"
        status = to_status(await self._observer.read(vm_id))
        return pb.CreateVMOnNodeResponse(vm_id=vm_id, created=is_new, message=message, status=status)

    async def ReconfigureVM(self, request: pb.ReconfigureVMRequest, context: Any) -> Empty:
        """Redefine a VM that is off: new disks are made, larger ones grown; images of disks left out stay."""
        decoded = await self._decode(request)
        await self._commands.change(
            request, lambda: self._reconfigure(decoded.config.vm_id, decoded), deadline_s=CREATE_DEADLINE_S
        )
        return Empty()

    async def StartVM(self, request: pb.VMIdRequest, context: Any) -> Empty:
        """Start it."""
        await self._commands.change(request, lambda: self._hypervisor.start(vm_id_of(request)))
        return Empty()

    async def StopVM(self, request: pb.StopVMRequest, context: Any) -> Empty:
        """Ask the guest to shut down, and wait: 30 s unless the request says otherwise, or until a newer command."""
        timeout_s = request.timeout_seconds or DEFAULT_STOP_TIMEOUT_S
        await self._commands.change(
            request,
            lambda: self._hypervisor.stop(vm_id_of(request), timeout_s),
            deadline_s=timeout_s + POWER_DEADLINE_S,
            takes_slot=False,
            is_interruptible=True,
        )
        return Empty()

    async def ForceStopVM(self, request: pb.VMIdRequest, context: Any) -> Empty:
        """Pull the plug."""
        await self._commands.change(request, lambda: self._hypervisor.force_stop(vm_id_of(request)))
        return Empty()

    async def RebootVM(self, request: pb.VMIdRequest, context: Any) -> Empty:
        """Reboot the guest; waits until that begins, or until a newer command."""
        await self._commands.change(request, lambda: self._hypervisor.reboot(vm_id_of(request)), is_interruptible=True)
        return Empty()

    async def PauseVM(self, request: pb.VMIdRequest, context: Any) -> Empty:
        """Stop its vCPUs."""
        await self._commands.change(request, lambda: self._hypervisor.pause(vm_id_of(request)))
        return Empty()

    async def ResumeVM(self, request: pb.VMIdRequest, context: Any) -> Empty:
        """Let its vCPUs run again."""
        await self._commands.change(request, lambda: self._hypervisor.resume(vm_id_of(request)))
        return Empty()

    async def SuspendVM(self, request: pb.VMIdRequest, context: Any) -> Empty:
        """Save its memory to disk and let its process end."""
        await self._commands.change(
            request, lambda: self._hypervisor.suspend(vm_id_of(request)), deadline_s=CREATE_DEADLINE_S
        )
        return Empty()

    async def DeleteVM(self, request: pb.VMIdRequest, context: Any) -> Empty:
        """Remove the definition, then the images; refused while it runs. Succeeds if it does not exist."""
        await self._commands.change(request, lambda: self._delete(vm_id_of(request)), deadline_s=CREATE_DEADLINE_S)
        return Empty()

    async def GetVMStatus(self, request: pb.VMIdRequest, context: Any) -> pb.VMStatusResponse:
        """Say what the VM is now."""
        return to_status(await self._observer.read(vm_id_of(request)))

    async def ListVMs(self, request: Empty, context: Any) -> pb.ListVMsOnNodeResponse:
        """Every VM of this host, also those LimiQuantix did not define."""
        return pb.ListVMsOnNodeResponse(vms=[to_status(vm) for vm in await self._observer.read_all()])

    async def GetConsole(self, request: pb.VMIdRequest, context: Any) -> pb.ConsoleInfoResponse:
        """Say where the graphical console listens on this host."""
        console = await self._commands.read(request, self._hypervisor.console)
        return pb.ConsoleInfoResponse(
            type=console.kind, host=console.host, port=console.port, password=console.password
        )

    async def GetConsoleLog(self, request: pb.GetConsoleLogRequest, context: Any) -> pb.GetConsoleLogResponse:
        """Read what the guest wrote to its serial console."""
        max_bytes = request.max_bytes or DEFAULT_LOG_BYTES
        log = await self._commands.read(
            request, lambda vm_id: self._hypervisor.read_console_log(vm_id, request.offset, max_bytes)
        )
        return pb.GetConsoleLogResponse(data=log.data, next_offset=log.next_offset, size_bytes=log.size_bytes)

    async def _decode(self, request: pb.CreateVMOnNodeRequest | pb.ReconfigureVMRequest) -> DecodedVm:
        """Decode a VM; an overtaken command is refused as such, whatever else may be wrong with it by now."""
        self._commands.require_newest(request)
        vm_id = vm_id_of(request)
        async with asyncio.timeout(READ_DEADLINE_S):
            return await asyncio.to_thread(decode_vm, vm_id, request.name, request.spec, self._paths)

    async def _create(self, vm_id: str, decoded: DecodedVm) -> bool:
        """Create; returns whether the VM is new."""
        is_new = await self._find(vm_id) is None
        if is_new:
            made = await self._images.ensure(vm_id, decoded.images)
        else:
            # First the definition: one that differs must be refused before any image is made.
            await self._hypervisor.create(decoded.config)
            await self._images.ensure(vm_id, decoded.images)
            return False
        try:
            await self._hypervisor.create(decoded.config)
        except BaseException as error:
            if isinstance(error, Unavailable):
                await self._undo_definition(vm_id)
            await self._images.discard(vm_id, made)
            raise
        return True

    async def _undo_definition(self, vm_id: str) -> None:
        """Remove a definition of which nobody knows whether it was made; if that fails too, so does the create."""
        try:
            async with asyncio.timeout(READ_DEADLINE_S):
                await self._hypervisor.delete(vm_id)
        except (Unavailable, TimeoutError):
            return  # the caller is told that the hypervisor does not answer; the inventory shows what became of it

    async def _reconfigure(self, vm_id: str, decoded: DecodedVm) -> None:
        status = await self._find(vm_id)
        if status is None:
            raise VmNotFound(vm_id)
        if not status.is_managed:
            raise FailedPrecondition(
                Reason.VM_NOT_MANAGED,
                f"VM {vm_id} was defined by another tool, and a new definition would lose what it has; "
                "change it with that tool",
                metadata={"vm_id": vm_id},
            )
        if status.state not in _OFF:  # before any image is touched
            raise WrongState(vm_id, "reconfigure", status.state.value)
        existing = [plan for plan in decoded.images if await asyncio.to_thread(plan.path.exists)]
        missing = [plan for plan in decoded.images if plan not in existing]
        made = await self._images.ensure(vm_id, missing)
        try:
            for plan in existing:
                await self._images.grow(vm_id, plan)
            await self._hypervisor.reconfigure(decoded.config)
        except BaseException:
            await self._images.discard(vm_id, made)
            raise

    async def _delete(self, vm_id: str) -> None:
        await self._hypervisor.delete(vm_id)
        await self._images.delete_vm(vm_id)

    async def _find(self, vm_id: str) -> VmStatus | None:
        try:
            return await self._hypervisor.status(vm_id)
        except VmNotFound:
            return None
