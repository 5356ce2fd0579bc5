"""Node daemons in memory: they keep VMs as a host would, note every call, and fail or wait where a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.empty_pb2 import Empty

from controlplane.domain import errors
from controlplane.domain.node import Node
from limiquantix.errors import Aborted, FailedPrecondition, NotFound, Reason, Unavailable
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from limiquantix.node.v1.node_daemon_pb2_grpc import NodeDaemonServiceServicer, add_NodeDaemonServiceServicer_to_server
from limiquantix.rpc.pipeline import CallPipeline
from limiquantix.rpc.server import RpcServer
from tests.support.fake_devices import FakeDeviceCalls, FakeDeviceServicer
from tests.support.fake_failovers import FakeFailoverCalls, FakeFailoverServicer
from tests.support.fake_guests import FakeGuestCalls, FakeGuestServicer
from tests.support.fake_migrations import FakeMigrationCalls, FakeMigrationServicer, Network

RUNNING, STOPPED, PAUSED = node_v1.POWER_STATE_RUNNING, node_v1.POWER_STATE_STOPPED, node_v1.POWER_STATE_PAUSED
SUSPENDED = node_v1.POWER_STATE_SUSPENDED


def unreachable(who: str = "the host") -> Unavailable:
    """What a call to a host that is gone raises."""
    return Unavailable(Reason.NODE_UNREACHABLE, f"{who} cannot be reached")


@dataclass
class FakeSnapshot:
    """What a fake host saved of a VM."""

    told: node_v1.SnapshotResponse
    spec: node_v1.VMSpec


@dataclass
class FakeVm:
    """One VM on a fake host."""

    name: str
    spec: node_v1.VMSpec
    state: node_v1.PowerState.ValueType = STOPPED
    change_count: int = 0
    snapshots: dict[str, FakeSnapshot] = field(default_factory=dict)
    current_snapshot_id: str = ""


@dataclass
class Fault:
    """Makes a call fail: before the host acts, or after, when only the answer is lost."""

    error: Exception
    after_acting: bool = False
    remaining_count: int | None = None
    """Calls that still fail; None for all."""


class Gate:
    """Holds calls until the test lets them go on."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self._open = asyncio.Event()

    async def passed(self) -> None:
        """Wait, as a held call, until `release`."""
        self.entered.set()
        await self._open.wait()

    def release(self) -> None:
        """Let the held calls, and all later ones, go on."""
        self._open.set()


@dataclass
class FakeDaemon(FakeMigrationCalls, FakeDeviceCalls, FakeFailoverCalls, FakeGuestCalls):
    """One host; implements `controlplane.daemons.interface.NodeDaemon`."""

    vms: dict[str, FakeVm] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    """(method, VM id) in the order in which calls began."""
    change_count: int = 0
    generations: dict[str, int] = field(default_factory=dict)
    """Newest generation of a command taken for each VM, kept when the VM is gone."""
    stop_timeouts_s: list[int] = field(default_factory=list)
    live_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """vCPUs and MiB that running VMs keep, whatever is asked for, by VM id."""
    measures: node_v1.NodeMetrics = field(default_factory=node_v1.NodeMetrics)
    metrics_streams: list[int] = field(default_factory=list)
    metrics_second_s: float = 1.0
    """How long a second is to streams of measures."""
    guest_requests: list[Any] = field(default_factory=list)
    """What agents were asked, as requests where there is one."""
    guest_result: node_v1.ExecuteInGuestResponse = field(
        default_factory=lambda: node_v1.ExecuteInGuestResponse(exit_code=0, stdout=b"out")
    )
    protected: set[str] = field(default_factory=set)
    takes_leases: bool = True
    missing_disks: set[str] = field(default_factory=set)
    told: list[tuple[int, int]] = field(default_factory=list)
    """Fence token and epoch that each object that calls came from was asked for with."""
    _faults: dict[str, Fault] = field(default_factory=dict)
    _gates: dict[str, Gate] = field(default_factory=dict)
    _active_count: dict[str, int] = field(default_factory=dict)
    most_at_once: dict[str, int] = field(default_factory=dict)
    """Largest number of calls under way at the same moment, by VM id."""

    def fail(self, method: str, error: Exception, *, after_acting: bool = False, times: int | None = None) -> None:
        """Make calls of a method fail; "*" means every method."""
        self._faults[method] = Fault(error, after_acting, times)

    def heal(self) -> None:
        """Take all faults back."""
        self._faults.clear()

    def hold(self, method: str) -> Gate:
        """Make calls of a method wait before the host acts."""
        return self._gates.setdefault(method, Gate())

    def methods(self, vm_id: str) -> list[str]:
        """Names of the calls about one VM, in order."""
        return [method for method, called_for in self.calls if called_for == vm_id]

    def set_state(self, vm_id: str, state: node_v1.PowerState.ValueType) -> None:
        """Change a VM behind the control plane's back."""
        self.change_count += 1
        self.vms[vm_id].state = state
        self.vms[vm_id].change_count = self.change_count

    # -- the daemon's methods

    async def create_vm(self, request: node_v1.CreateVMOnNodeRequest) -> node_v1.VMStatusResponse:
        def act() -> None:
            self.protect(request.vm_id, is_protected=request.spec.is_protected)
            if request.vm_id not in self.vms:
                self.vms[request.vm_id] = self._made(request.name, request.spec)
                self.set_state(request.vm_id, STOPPED)

        await self._called("create_vm", request.vm_id, act, request.generation)
        return self._status(request.vm_id)

    async def prepare_migration(self, request: node_v1.PrepareMigrationRequest) -> node_v1.MigrationToken:
        token = await super().prepare_migration(request)
        self.protect(request.vm_id, is_protected=request.definition.spec.is_protected)
        return token

    async def reconfigure_vm(self, request: node_v1.ReconfigureVMRequest) -> None:
        def act() -> None:
            self._vm(request.vm_id).spec = request.spec

        await self._called("reconfigure_vm", request.vm_id, act, request.generation)

    async def resize_vm(self, request: node_v1.ReconfigureVMRequest) -> node_v1.ResizeVMResponse:
        """Give what runs the size that `live_sizes` has for it, if anything, else all of the new one."""

        def act() -> None:
            self._vm(request.vm_id).spec = request.spec

        await self._called("resize_vm", request.vm_id, act, request.generation)
        spec = request.spec
        asked = (spec.cpu_cores * max(spec.cpu_sockets, 1) * max(spec.cpu_threads_per_core, 1), spec.memory_mib)
        is_off = self._vm(request.vm_id).state == STOPPED
        vcpu_count, memory_mib = asked if is_off else self.live_sizes.get(request.vm_id, asked)
        return node_v1.ResizeVMResponse(
            vcpu_count=vcpu_count,
            memory_mib=memory_mib,
            obstacles=[] if (vcpu_count, memory_mib) == asked else ["there is no room in the guest"],
            status=self._status(request.vm_id),
        )

    async def delete_vm(self, vm_id: str, generation: int) -> None:
        await self._called("delete_vm", vm_id, lambda: self.vms.pop(vm_id, None), generation)
        self.protected.discard(vm_id)

    async def start_vm(self, vm_id: str, generation: int) -> None:
        await self._move("start_vm", vm_id, RUNNING, generation)

    async def stop_vm(self, vm_id: str, timeout_s: int, generation: int) -> None:
        self.stop_timeouts_s.append(timeout_s)
        await self._move("stop_vm", vm_id, STOPPED, generation)

    async def force_stop_vm(self, vm_id: str, generation: int) -> None:
        await self._move("force_stop_vm", vm_id, STOPPED, generation)

    async def reboot_vm(self, vm_id: str, generation: int) -> None:
        await self._move("reboot_vm", vm_id, RUNNING, generation)

    async def pause_vm(self, vm_id: str, generation: int) -> None:
        await self._move("pause_vm", vm_id, PAUSED, generation)

    async def resume_vm(self, vm_id: str, generation: int) -> None:
        await self._move("resume_vm", vm_id, RUNNING, generation)

    async def suspend_vm(self, vm_id: str, generation: int) -> None:
        await self._move("suspend_vm", vm_id, SUSPENDED, generation)

    async def create_snapshot(self, request: node_v1.CreateSnapshotRequest) -> node_v1.SnapshotResponse:
        def act() -> None:
            vm = self._vm(request.vm_id)
            if request.snapshot_id in vm.snapshots:
                return
            told = node_v1.SnapshotResponse(
                snapshot_id=request.snapshot_id,
                name=request.name,
                description=request.description,
                vm_state=vm.state,
                parent_id=vm.current_snapshot_id,
                memory_included=request.include_memory,
                quiesced=request.quiesce,
            )
            vm.snapshots[request.snapshot_id] = FakeSnapshot(told, vm.spec)
            vm.current_snapshot_id = request.snapshot_id

        await self._called("create_snapshot", request.vm_id, act, request.generation)
        return self._vm(request.vm_id).snapshots[request.snapshot_id].told

    async def revert_snapshot(self, request: node_v1.RevertSnapshotRequest) -> None:
        def act() -> None:
            vm = self._vm(request.vm_id)
            if request.snapshot_id not in vm.snapshots:
                raise NotFound(Reason.SNAPSHOT_NOT_FOUND, "no such snapshot")
            saved = vm.snapshots[request.snapshot_id]
            vm.spec, vm.current_snapshot_id = saved.spec, request.snapshot_id
            runs = saved.told.memory_included or request.start_after_revert
            self.set_state(request.vm_id, RUNNING if runs else STOPPED)

        await self._called("revert_snapshot", request.vm_id, act, request.generation)

    async def delete_snapshot(self, request: node_v1.DeleteSnapshotRequest) -> None:
        def act() -> None:
            vm = self._vm(request.vm_id)
            gone = vm.snapshots.pop(request.snapshot_id, None)
            if gone is not None:
                for each in vm.snapshots.values():
                    if each.told.parent_id == request.snapshot_id:
                        each.told.parent_id = gone.told.parent_id
                if vm.current_snapshot_id == request.snapshot_id:
                    vm.current_snapshot_id = gone.told.parent_id

        await self._called("delete_snapshot", request.vm_id, act, request.generation)

    async def list_snapshots(self, vm_id: str) -> node_v1.ListSnapshotsResponse:
        await self._called("list_snapshots", vm_id, lambda: None)
        vm = self._vm(vm_id)
        for snapshot_id, each in vm.snapshots.items():
            each.told.is_current = snapshot_id == vm.current_snapshot_id
        return node_v1.ListSnapshotsResponse(snapshots=[each.told for each in vm.snapshots.values()])

    async def vm_status(self, vm_id: str) -> node_v1.VMStatusResponse:
        await self._called("vm_status", vm_id, lambda: None)
        return self._status(vm_id)

    async def open_console(self, request: node_v1.OpenConsoleRequest) -> node_v1.ConsoleInfoResponse:
        vm_id = request.vm_id
        await self._called("open_console", vm_id, lambda: None)
        if self._vm(vm_id).state == STOPPED:
            raise FailedPrecondition(Reason.CONSOLE_ABSENT, f"VM {vm_id} is STOPPED and has no console")
        if request.type == node_v1.CONSOLE_TYPE_SPICE:
            raise FailedPrecondition(Reason.CONSOLE_ABSENT, f"VM {vm_id} has no spice console")
        kind = "serial" if request.type == node_v1.CONSOLE_TYPE_SERIAL else "vnc"
        return node_v1.ConsoleInfoResponse(type=kind, host="127.0.0.1", port=5900, password="secret12")

    async def metrics(self, request: node_v1.StreamMetricsRequest) -> AsyncGenerator[node_v1.NodeMetrics, None]:
        """Send `measures` at the interval asked for; the open streams' intervals are in `metrics_streams`."""
        await self._called("metrics", "", lambda: None)
        self.metrics_streams.append(request.interval_seconds)
        try:
            while True:
                self.measures.timestamp.GetCurrentTime()
                yield self.measures
                await asyncio.sleep(request.interval_seconds * self.metrics_second_s)
                await self._called("metrics", "", lambda: None)
        finally:
            self.metrics_streams.remove(request.interval_seconds)

    async def console_log(self, request: node_v1.GetConsoleLogRequest) -> node_v1.GetConsoleLogResponse:
        await self._called("console_log", request.vm_id, lambda: None)
        log = b"hello from the guest\n"
        data = log[request.offset : request.offset + request.max_bytes]
        return node_v1.GetConsoleLogResponse(data=data, next_offset=request.offset + len(data), size_bytes=len(log))

    def _made(self, name: str, spec: node_v1.VMSpec) -> FakeVm:
        return FakeVm(name, spec)

    def _vm(self, vm_id: str) -> FakeVm:
        if vm_id not in self.vms:
            raise NotFound(Reason.VM_NOT_FOUND, f"VM {vm_id} is not on this host")
        return self.vms[vm_id]

    def _status(self, vm_id: str) -> node_v1.VMStatusResponse:
        vm = self._vm(vm_id)
        return node_v1.VMStatusResponse(vm_id=vm_id, name=vm.name, state=vm.state, state_change_count=vm.change_count)

    def _check_generation(self, vm_id: str, generation: int) -> None:
        newest = self.generations.get(vm_id, 0)
        if 0 < generation < newest:
            raise Aborted(Reason.STALE_GENERATION, "an older command", metadata={"vm_id": vm_id, "newest": str(newest)})
        self.generations[vm_id] = max(newest, generation)

    async def _move(self, method: str, vm_id: str, state: node_v1.PowerState.ValueType, generation: int) -> None:
        def act() -> None:
            if self._vm(vm_id).state != state:
                self.set_state(vm_id, state)

        await self._called(method, vm_id, act, generation)

    async def _called(self, method: str, vm_id: str, act: Callable[[], Any], generation: int = 0) -> None:
        self.calls.append((method, vm_id))
        self._active_count[vm_id] = self._active_count.get(vm_id, 0) + 1
        self.most_at_once[vm_id] = max(self.most_at_once.get(vm_id, 0), self._active_count[vm_id])
        try:
            if method in self._gates:
                await self._gates[method].passed()
            await asyncio.sleep(0)
            fault = self._fault_of(method)
            if fault is not None and not fault.after_acting:
                raise fault.error
            self._check_generation(vm_id, generation)
            act()
            if fault is not None:
                raise fault.error
        finally:
            self._active_count[vm_id] -= 1

    async def _held(self, method: str) -> None:
        """Wait where a test holds something that is no call."""
        await asyncio.sleep(0)
        if method in self._gates:
            await self._gates[method].passed()

    def _fault_of(self, method: str) -> Fault | None:
        fault = self._faults.get(method) or self._faults.get("*")
        if fault is None or fault.remaining_count == 0:
            return None
        if fault.remaining_count is not None:
            fault.remaining_count -= 1
        return fault


class FakeDaemons:
    """All hosts, one for each node; implements `controlplane.daemons.interface.DaemonPool`."""

    def __init__(self) -> None:
        self._by_node: dict[str, FakeDaemon] = {}
        self.network = Network()

    def daemon(self, node: Node, epoch: int = 0) -> FakeDaemon:
        """Return the host of a node, which exists from the first time it is asked for."""
        asyncio.get_running_loop()  # a thread of the database has none, and the real pool opens connections here
        if not node.agent_endpoint:
            raise errors.node_has_no_agent(node.hostname)
        daemon = self.of(node.id)
        daemon.told.append((node.fence_token, epoch))
        return daemon

    def of(self, node_id: str) -> FakeDaemon:
        """Return the host of the node with that id."""
        if node_id not in self._by_node:
            daemon = FakeDaemon(uri=f"fake://{node_id}", network=self.network)
            self._by_node[node_id] = self.network.by_uri[daemon.uri] = daemon
        return self._by_node[node_id]

    def known_as(self, node_id: str, daemon: FakeDaemon) -> None:
        """Let a host be that of another node too."""
        self._by_node[node_id] = daemon

    def all(self) -> list[FakeDaemon]:
        """Every host that was ever asked for."""
        return list(self._by_node.values())


class _NobodyObserves:
    def call_finished(self, method: str, code: int, duration_s: float) -> None:
        """A fake host keeps no metrics."""


class FakeDaemonServicer(
    FakeDeviceServicer, FakeFailoverServicer, FakeGuestServicer, FakeMigrationServicer, NodeDaemonServiceServicer
):
    """Puts a fake host behind the daemon's gRPC contract."""

    _daemon: FakeDaemon

    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    async def CreateVM(self, request: node_v1.CreateVMOnNodeRequest, context: Any) -> node_v1.CreateVMOnNodeResponse:
        status = await self._daemon.create_vm(request)
        return node_v1.CreateVMOnNodeResponse(vm_id=request.vm_id, created=True, status=status)

    async def ReconfigureVM(self, request: node_v1.ReconfigureVMRequest, context: Any) -> Empty:
        await self._daemon.reconfigure_vm(request)
        return Empty()

    async def ResizeVM(self, request: node_v1.ReconfigureVMRequest, context: Any) -> node_v1.ResizeVMResponse:
        return await self._daemon.resize_vm(request)

    async def DeleteVM(self, request: node_v1.VMIdRequest, context: Any) -> Empty:
        await self._daemon.delete_vm(request.vm_id, request.generation)
        return Empty()

    async def StartVM(self, request: node_v1.VMIdRequest, context: Any) -> Empty:
        await self._daemon.start_vm(request.vm_id, request.generation)
        return Empty()

    async def StopVM(self, request: node_v1.StopVMRequest, context: Any) -> Empty:
        await self._daemon.stop_vm(request.vm_id, request.timeout_seconds, request.generation)
        return Empty()

    async def ForceStopVM(self, request: node_v1.VMIdRequest, context: Any) -> Empty:
        await self._daemon.force_stop_vm(request.vm_id, request.generation)
        return Empty()

    async def RebootVM(self, request: node_v1.VMIdRequest, context: Any) -> Empty:
        await self._daemon.reboot_vm(request.vm_id, request.generation)
        return Empty()

    async def PauseVM(self, request: node_v1.VMIdRequest, context: Any) -> Empty:
        await self._daemon.pause_vm(request.vm_id, request.generation)
        return Empty()

    async def ResumeVM(self, request: node_v1.VMIdRequest, context: Any) -> Empty:
        await self._daemon.resume_vm(request.vm_id, request.generation)
        return Empty()

    async def SuspendVM(self, request: node_v1.VMIdRequest, context: Any) -> Empty:
        await self._daemon.suspend_vm(request.vm_id, request.generation)
        return Empty()

    async def CreateSnapshot(self, request: node_v1.CreateSnapshotRequest, context: Any) -> node_v1.SnapshotResponse:
        return await self._daemon.create_snapshot(request)

    async def RevertSnapshot(self, request: node_v1.RevertSnapshotRequest, context: Any) -> Empty:
        await self._daemon.revert_snapshot(request)
        return Empty()

    async def DeleteSnapshot(self, request: node_v1.DeleteSnapshotRequest, context: Any) -> Empty:
        await self._daemon.delete_snapshot(request)
        return Empty()

    async def ListSnapshots(self, request: node_v1.VMIdRequest, context: Any) -> node_v1.ListSnapshotsResponse:
        return await self._daemon.list_snapshots(request.vm_id)

    async def GetVMStatus(self, request: node_v1.VMIdRequest, context: Any) -> node_v1.VMStatusResponse:
        return await self._daemon.vm_status(request.vm_id)

    async def OpenConsole(self, request: node_v1.OpenConsoleRequest, context: Any) -> node_v1.ConsoleInfoResponse:
        return await self._daemon.open_console(request)

    async def StreamMetrics(
        self, request: node_v1.StreamMetricsRequest, context: Any
    ) -> AsyncIterator[node_v1.NodeMetrics]:
        async with aclosing(self._daemon.metrics(request)) as measures:
            async for metrics in measures:
                yield metrics

    async def GetConsoleLog(self, request: node_v1.GetConsoleLogRequest, context: Any) -> node_v1.GetConsoleLogResponse:
        return await self._daemon.console_log(request)


def serve(daemon: FakeDaemon) -> RpcServer:
    """Make a gRPC server, not yet started, that answers as the fake host does; the contract's rules are checked."""
    servicer = FakeDaemonServicer(daemon)  # type: ignore[abstract]
    return RpcServer(
        CallPipeline({}, _NobodyObserves()),
        ["limiquantix.node.v1.NodeDaemonService"],
        lambda server: add_NodeDaemonServiceServicer_to_server(servicer, server),
    )
