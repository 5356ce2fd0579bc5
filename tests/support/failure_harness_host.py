"""A host in this process: the real logic of the node daemon on files of its own, to be killed and started again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message

from hypervisor import errors as hv
from hypervisor.devices import Devices
from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.host import MockSettings
from hypervisor.resizing import Resized, Resizing
from hypervisor.snapshots import Snapshot, SnapshotRequest, Snapshots
from hypervisor.types import VmConfig, VmNotes
from limiquantix.errors import DeadlineExceeded, FailedPrecondition, Reason, Unavailable
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.change_count import StateChanges, next_boot_number
from nodedaemon.commands import Commands
from nodedaemon.control_plane import ControlPlane
from nodedaemon.disk_images import DiskImages, ImagePlan
from nodedaemon.generations import Generations, open_generations
from nodedaemon.host_meter import HostMeter
from nodedaemon.host_report import HostReport
from nodedaemon.observer import VmObserver
from nodedaemon.reporter import Reporter
from nodedaemon.self_fencing.keeper import SelfFencing
from nodedaemon.self_fencing.memory import open_memory
from nodedaemon.servicer import NodeDaemonServicer
from nodedaemon.storage_paths import StoragePaths
from nodedaemon.vm_actor import VmActors
from tests.support.failure_harness_devices import DeviceHostCalls, WatchedDevices
from tests.support.failure_harness_faults import Fault, Place, Weather
from tests.support.failure_harness_guests import GuestHostCalls
from tests.support.failure_harness_migration_calls import MigrationHostCalls
from tests.support.failure_harness_process import SimulatedProcess, unless_dead

ResultT = TypeVar("ResultT")
MessageT = TypeVar("MessageT", bound=Message)

SIMULATED_QEMU_IMG = """#!/bin/sh
# Knows of qemu-img what the daemon uses; an image is an empty file of its size.
case $1 in
info) for path; do :; done; size=$(stat -c %s "$path") || exit 1
      echo "{\\"virtual-size\\": $size, \\"actual-size\\": 0}";;
convert) while [ $# -gt 2 ]; do shift; done; exec cp "$1" "$2";;
create|resize) while [ $# -gt 2 ]; do shift; done; exec truncate -s "$2" "$1";;
*) exit 2;;
esac
"""

_TRANSIENT_COUNT = 2
GUEST_TIME = 0.05
"""How fast seconds pass for guests."""


class WatchedHypervisor(MockHypervisor):
    """The mock, whose changes are boundaries: the daemon may be killed before and after each."""

    def __init__(self, settings: MockSettings, at: Callable[[Place, str], Awaitable[None]]) -> None:
        super().__init__(settings, sleep=self._guest_takes)
        self._at = at

    async def _guest_takes(self, seconds: float) -> None:
        await self._at(Place.GUEST, "")
        await asyncio.sleep(seconds * GUEST_TIME)

    async def create(self, config: VmConfig) -> None:
        """See `Hypervisor`, as all below."""
        await self._between("create", partial(super().create, config))

    async def reconfigure(self, config: VmConfig) -> None:
        await self._between("reconfigure", partial(super().reconfigure, config))

    async def delete(self, vm_id: str) -> None:
        await self._between("delete", partial(super().delete, vm_id))

    async def start(self, vm_id: str, may_run: Callable[[], None] | None = None) -> None:
        await self._between("start", partial(super().start, vm_id, may_run))

    async def set_notes(self, vm_id: str, notes: VmNotes) -> None:
        await self._between("set_notes", partial(super().set_notes, vm_id, notes))

    async def stop(self, vm_id: str, timeout_s: float) -> None:
        await self._between("stop", partial(super().stop, vm_id, timeout_s))

    async def force_stop(self, vm_id: str) -> None:
        await self._between("force_stop", partial(super().force_stop, vm_id))

    async def reboot(self, vm_id: str) -> None:
        await self._between("reboot", partial(super().reboot, vm_id))

    async def pause(self, vm_id: str) -> None:
        await self._between("pause", partial(super().pause, vm_id))

    async def resume(self, vm_id: str) -> None:
        await self._between("resume", partial(super().resume, vm_id))

    async def suspend(self, vm_id: str) -> None:
        await self._between("suspend", partial(super().suspend, vm_id))

    @property
    def devices(self) -> Devices:
        return WatchedDevices(super().devices, self._at)

    @property
    def resizing(self) -> Resizing:
        return WatchedResizing(super().resizing, self._at)

    @property
    def snapshots(self) -> Snapshots:
        return WatchedSnapshots(super().snapshots, self._at)

    async def _between(self, what: str, act: Callable[[], Awaitable[None]]) -> None:
        await self._at(Place.BEFORE_ACT, what)
        await act()
        await self._at(Place.AFTER_ACT, what)


class WatchedResizing(Resizing):
    """The mock's resizing, whose change is a boundary."""

    def __init__(self, real: Resizing | None, at: Callable[[Place, str], Awaitable[None]]) -> None:
        assert real is not None
        self._real = real
        self._at = at

    async def resize(self, config: VmConfig) -> Resized:
        """See `Resizing`."""
        await self._at(Place.BEFORE_ACT, "resize")
        resized = await self._real.resize(config)
        await self._at(Place.AFTER_ACT, "resize")
        return resized


class WatchedSnapshots(Snapshots):
    """The mock's snapshots, whose changes are boundaries."""

    def __init__(self, real: Snapshots | None, at: Callable[[Place, str], Awaitable[None]]) -> None:
        assert real is not None
        self._real = real
        self._at = at

    async def create(self, vm_id: str, request: SnapshotRequest) -> Snapshot:
        """See `Snapshots`, as all below."""
        await self._at(Place.BEFORE_ACT, "snapshots.create")
        made = await self._real.create(vm_id, request)
        await self._at(Place.AFTER_ACT, "snapshots.create")
        return made

    async def revert(self, vm_id: str, snapshot_id: str, *, start: bool = False) -> None:
        await self._at(Place.BEFORE_ACT, "snapshots.revert")
        await self._real.revert(vm_id, snapshot_id, start=start)
        await self._at(Place.AFTER_ACT, "snapshots.revert")

    async def delete(self, vm_id: str, snapshot_id: str) -> None:
        await self._at(Place.BEFORE_ACT, "snapshots.delete")
        await self._real.delete(vm_id, snapshot_id)
        await self._at(Place.AFTER_ACT, "snapshots.delete")

    async def list(self, vm_id: str) -> Sequence[Snapshot]:
        return await self._real.list(vm_id)


class WatchedImages(DiskImages):
    """Disk images whose changes are boundaries."""

    def __init__(self, paths: StoragePaths, qemu_img: str, at: Callable[[Place, str], Awaitable[None]]) -> None:
        super().__init__(paths, qemu_img)
        self._at = at

    async def ensure(self, vm_id: str, plans: Sequence[ImagePlan]) -> list[Path]:
        """See `DiskImages`, as all below."""
        await self._at(Place.BEFORE_ACT, "images.ensure")
        made = await super().ensure(vm_id, plans)
        await self._at(Place.AFTER_ACT, "images.ensure")
        return made

    async def run(self, vm_id: str, *words: str, deadline_s: float) -> bytes:
        await self._at(Place.BEFORE_ACT, f"images.{words[0]}")
        output = await super().run(vm_id, *words, deadline_s=deadline_s)
        await self._at(Place.AFTER_ACT, f"images.{words[0]}")
        return output

    async def delete_vm(self, vm_id: str) -> None:
        await self._at(Place.BEFORE_ACT, "images.delete")
        await super().delete_vm(vm_id)
        await self._at(Place.AFTER_ACT, "images.delete")


@dataclass
class Daemon:
    """One life of the daemon."""

    process: SimulatedProcess
    hypervisor: WatchedHypervisor
    servicer: NodeDaemonServicer
    report: HostReport
    reporter: Reporter
    generations: Generations


class Host:
    """One host with its files; `boot` starts the daemon, `kill` is `kill -9`.

    Args:
        settings: of the mock, without the state file.
        control_plane: where the daemon reports to.
    """

    def __init__(
        self,
        directory: Path,
        node_id: str,
        weather: Weather,
        control_plane: ControlPlane,
        settings: Callable[[Path], MockSettings],
    ) -> None:
        self.node_id = node_id
        self.images_dir = directory / "images"
        self.is_gone = False
        """Whether a dead daemon stays dead until `boot` is called; else the next call to it finds it back."""
        self._data_dir = directory / "data"
        self._weather = weather
        self._control_plane = control_plane
        self.state_path = self._data_dir / "mock-vms.json"
        self._settings = settings(self.state_path)
        self._qemu_img = directory / "qemu-img"
        self._daemon: Daemon | None = None
        self._dead: list[Daemon] = []
        self._booting = asyncio.Lock()

    @property
    def daemon(self) -> Daemon:
        """The living daemon."""
        assert self._daemon is not None
        assert self._daemon.process.is_alive
        return self._daemon

    @property
    def is_up(self) -> bool:
        """Whether there is a living daemon."""
        return self._daemon is not None and self._daemon.process.is_alive

    async def boot(self) -> None:
        """Start the daemon, if it is not there; goes on when its caller is cancelled."""
        await asyncio.shield(asyncio.ensure_future(self._boot()))

    async def _boot(self) -> None:
        async with self._booting:
            if not self.is_up:
                await self._boot_now()

    async def _boot_now(self) -> None:
        if self._daemon is not None:
            await self._bury(self._daemon)
        self.is_gone = False
        process = SimulatedProcess()
        self._daemon = await process.spawn(self._start(process))
        self._daemon.reporter.node_registered(self.node_id)

    def has_told(self) -> bool:
        """Whether the control plane took in every change; what it did not is sent again at once."""
        if not self.is_up:
            return True
        self.daemon.reporter.retry_now()
        return self.daemon.reporter.pending_count == 0

    def kill(self) -> None:
        """Kill the daemon where it stands."""
        if self._daemon is not None:
            self._daemon.process.kill()

    async def end(self) -> None:
        """End every daemon there ever was."""
        if self.is_up:
            await self.daemon.generations.close()
            await self.daemon.hypervisor.close()
        for daemon in [*self._dead, *([self._daemon] if self._daemon else [])]:
            await daemon.process.end()

    async def _bury(self, dead: Daemon) -> None:
        """Let go of what the kernel would: locks of files."""
        await dead.generations.close()
        self._dead.append(dead)

    async def _start(self, process: SimulatedProcess) -> Daemon:
        """Make the parts from the host's files, as the composition root does."""
        await asyncio.to_thread(self.images_dir.mkdir, parents=True, exist_ok=True)
        await asyncio.to_thread(self._write_qemu_img)
        boot_number = await asyncio.to_thread(next_boot_number, self._data_dir, time.time())
        generations = await open_generations(self._data_dir)
        hypervisor = WatchedHypervisor(self._settings, self._at)
        await hypervisor.open()
        observer = VmObserver(hypervisor, StateChanges(boot_number), generations.newest)
        await observer.read_all()
        paths = StoragePaths(self.images_dir)
        sampler = HostMeter(hypervisor, self.images_dir)
        report = HostReport(hypervisor, observer, sampler, hostname="h1", labels={}, node_id=self.node_id)
        servicer = NodeDaemonServicer(  # type: ignore[abstract]
            hypervisor,
            observer,
            Commands(VmActors(max_concurrent=16, max_queued=16), generations),
            WatchedImages(paths, str(self._qemu_img), self._at),
            paths,
            report,
            fencing=SelfFencing(
                await asyncio.to_thread(open_memory, self._data_dir), hypervisor.processes, None, boot_id="boot"
            ),
        )
        reporter = Reporter(observer, self._control_plane, report.full_state)
        hypervisor.subscribe(reporter.on_event)
        process.spawn(reporter.run())
        return Daemon(process, hypervisor, servicer, report, reporter, generations)

    def _write_qemu_img(self) -> None:
        if not self._qemu_img.exists():
            self._qemu_img.write_text(SIMULATED_QEMU_IMG)
            self._qemu_img.chmod(0o755)

    async def _at(self, place: Place, what: str) -> None:
        """Pass a boundary inside of the daemon."""
        match await self._weather.reach(place, what):
            case Fault.KILL_DAEMON | Fault.DAEMON_GONE as fault:
                self.is_gone = fault is Fault.DAEMON_GONE
                self.kill()
                await asyncio.sleep(0)  # and never goes on
            case Fault.FAIL:
                raise hv.Refused("simulated refusal")
            case Fault.FAIL_TRANSIENT:
                self._weather.daemon_silences = _TRANSIENT_COUNT - 1
                raise hv.Unavailable("simulated absence")
            case Fault.LOSE_ANSWER:
                raise hv.Unavailable("simulated loss of the answer")


class HostCalls(DeviceHostCalls, GuestHostCalls, MigrationHostCalls):
    """A host's daemon as the control plane calls it; implements `controlplane.daemons.interface.NodeDaemon`.

    Messages are copied, as a wire would, so that neither side can see the other's objects.
    """

    def __init__(self, host: Host, weather: Weather) -> None:
        self._host = host
        self._weather = weather

    async def create_vm(self, request: pb.CreateVMOnNodeRequest) -> pb.VMStatusResponse:
        """See `NodeDaemon`, as all below."""
        answer: pb.CreateVMOnNodeResponse = await self._call("CreateVM", request)
        return answer.status

    async def adopt_vm(self, request: pb.CreateVMOnNodeRequest) -> pb.VMStatusResponse:
        answer: pb.CreateVMOnNodeResponse = await self._call("AdoptVM", request)
        return answer.status

    async def release_vm(self, vm_id: str, generation: int) -> None:
        await self._call("ReleaseVM", _vm(vm_id, generation))

    async def set_vm_protection(self, request: pb.SetVMProtectionRequest) -> None:
        await self._call("SetVMProtection", request)

    async def reconfigure_vm(self, request: pb.ReconfigureVMRequest) -> None:
        await self._call("ReconfigureVM", request)

    async def resize_vm(self, request: pb.ReconfigureVMRequest) -> pb.ResizeVMResponse:
        answer: pb.ResizeVMResponse = await self._call("ResizeVM", request)
        return answer

    async def delete_vm(self, vm_id: str, generation: int) -> None:
        await self._call("DeleteVM", _vm(vm_id, generation))

    async def start_vm(self, vm_id: str, generation: int) -> None:
        await self._call("StartVM", _vm(vm_id, generation))

    async def stop_vm(self, vm_id: str, timeout_s: int, generation: int) -> None:
        request = pb.StopVMRequest(vm_id=vm_id, timeout_seconds=timeout_s, generation=generation)
        await self._call("StopVM", request)

    async def force_stop_vm(self, vm_id: str, generation: int) -> None:
        await self._call("ForceStopVM", _vm(vm_id, generation))

    async def reboot_vm(self, vm_id: str, generation: int) -> None:
        await self._call("RebootVM", _vm(vm_id, generation))

    async def pause_vm(self, vm_id: str, generation: int) -> None:
        await self._call("PauseVM", _vm(vm_id, generation))

    async def resume_vm(self, vm_id: str, generation: int) -> None:
        await self._call("ResumeVM", _vm(vm_id, generation))

    async def suspend_vm(self, vm_id: str, generation: int) -> None:
        await self._call("SuspendVM", _vm(vm_id, generation))

    async def create_snapshot(self, request: pb.CreateSnapshotRequest) -> pb.SnapshotResponse:
        answer: pb.SnapshotResponse = await self._call("CreateSnapshot", request)
        return answer

    async def revert_snapshot(self, request: pb.RevertSnapshotRequest) -> None:
        await self._call("RevertSnapshot", request)

    async def delete_snapshot(self, request: pb.DeleteSnapshotRequest) -> None:
        await self._call("DeleteSnapshot", request)

    async def list_snapshots(self, vm_id: str) -> pb.ListSnapshotsResponse:
        answer: pb.ListSnapshotsResponse = await self._call("ListSnapshots", _vm(vm_id))
        return answer

    async def vm_status(self, vm_id: str) -> pb.VMStatusResponse:
        answer: pb.VMStatusResponse = await self._call("GetVMStatus", _vm(vm_id))
        return answer

    async def open_console(self, request: pb.OpenConsoleRequest) -> pb.ConsoleInfoResponse:
        answer: pb.ConsoleInfoResponse = await self._call("OpenConsole", request)
        return answer

    async def metrics(self, request: pb.StreamMetricsRequest) -> AsyncGenerator[pb.NodeMetrics, None]:
        """Measure once."""
        await self._call("HealthCheck", pb.HealthCheckRequest())
        yield pb.NodeMetrics()

    async def console_log(self, request: pb.GetConsoleLogRequest) -> pb.GetConsoleLogResponse:
        answer: pb.GetConsoleLogResponse = await self._call("GetConsoleLog", request)
        return answer

    async def _call(self, method: str, request: Message) -> Any:
        match await self._weather.reach(Place.BEFORE_CALL, method):
            case Fault.FAIL:
                raise FailedPrecondition(Reason.HYPERVISOR_REFUSED, "simulated refusal")
            case Fault.FAIL_TRANSIENT:
                self._weather.daemon_silences = _TRANSIENT_COUNT
            case Fault.TWICE:
                await self._deliver(method, request)
            case Fault.LATE_COMMAND:
                self._weather.late.append(partial(self._deliver, method, request))
                raise _unreachable()
            case Fault.KILLED_AND_LATE:
                self._weather.late.append(partial(self._deliver, method, request))
                self._weather.plane_is_doomed.set()
                await asyncio.get_running_loop().create_future()
            case Fault.KILL_DAEMON | Fault.DAEMON_GONE as fault:
                self._kill(fault)
                raise _unreachable()
        if self._weather.daemon_silences:
            self._weather.daemon_silences -= 1
            raise _unreachable()
        answer = await self._deliver(method, request)
        match await self._weather.reach(Place.AFTER_CALL, method):
            case Fault.KILL_DAEMON | Fault.DAEMON_GONE as fault:
                self._kill(fault)
                raise _unreachable()
            case Fault.LOSE_ANSWER:
                raise _unreachable()
            case Fault.ANSWER_TOO_LATE:
                raise DeadlineExceeded(Reason.DEADLINE_EXCEEDED, "simulated loss of patience")
        return answer

    def _kill(self, fault: Fault) -> None:
        self._host.is_gone = fault is Fault.DAEMON_GONE
        self._host.kill()

    async def _deliver(self, method: str, request: MessageT) -> Any:
        if not self._host.is_up:
            if self._host.is_gone:
                raise _unreachable()
            await self._host.boot()
        daemon = self._host.daemon
        copy = type(request).FromString(request.SerializeToString())
        serving = daemon.process.spawn(getattr(daemon.servicer, method)(copy, None))
        try:
            answer = await unless_dead(daemon.process, serving)
        except asyncio.CancelledError:
            if daemon.process.is_alive:
                serving.cancel()  # as the server does when its caller is gone
            raise
        if answer is None:
            raise _unreachable()
        return type(answer).FromString(answer.SerializeToString())


def _unreachable() -> Unavailable:
    return Unavailable(Reason.NODE_UNREACHABLE, "node h1 cannot be reached")


def _vm(vm_id: str, generation: int = 0) -> pb.VMIdRequest:
    return pb.VMIdRequest(vm_id=vm_id, generation=generation)
