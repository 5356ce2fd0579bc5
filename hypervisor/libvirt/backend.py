"""The libvirt backend: `Hypervisor` on QEMU, through one connection to a libvirt daemon.

A VM's id is its domain's UUID, and libvirt is the only place where anything about a VM is kept. Each operation is one
visit to a worker thread that makes all its libvirt calls there.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from hypervisor.accelerator import detect_accelerator
from hypervisor.base import Hypervisor, Listener
from hypervisor.devices import Devices
from hypervisor.errors import (
    GuestDidNotStop,
    HypervisorError,
    Unavailable,
    VmNotFound,
    WrongState,
)
from hypervisor.guests import GuestAgents
from hypervisor.host_devices import HostDevices
from hypervisor.libvirt import domain_xml, host_abilities
from hypervisor.libvirt.connection import LibvirtConnection
from hypervisor.libvirt.console_log_keeper import ConsoleLogKeeper
from hypervisor.libvirt.consoles import DomainConsoles
from hypervisor.libvirt.devices import LibvirtDevices
from hypervisor.libvirt.domain_inventory import GuestMemory, Inventory
from hypervisor.libvirt.domain_operations import OFF, DomainOperations
from hypervisor.libvirt.domain_state import EventTranslator, RawEvent
from hypervisor.libvirt.guest_agents import LibvirtGuestAgents
from hypervisor.libvirt.migration import NO_PEERS, LibvirtMigration, PeerSettings
from hypervisor.libvirt.node_devices import LibvirtHostDevices
from hypervisor.libvirt.peer_certificates import LibvirtPeerCertificates
from hypervisor.libvirt.processes import LibvirtProcesses
from hypervisor.libvirt.resizing import LibvirtResizing
from hypervisor.libvirt.snapshots import LibvirtSnapshots
from hypervisor.libvirt.statistics import DomainStatistics
from hypervisor.libvirt.visits import Visits
from hypervisor.libvirt.worker_pool import Lane
from hypervisor.migration import Migration
from hypervisor.processes import VmProcesses
from hypervisor.resizing import Resizing
from hypervisor.snapshots import Snapshots
from hypervisor.statistics import Statistics
from hypervisor.types import (
    Accelerator,
    Capabilities,
    ConsoleKind,
    ConsoleLog,
    EventKind,
    Health,
    PowerState,
    VmConfig,
    VmEvent,
    VmNotes,
    VmStatus,
)

CALL_DEADLINE_S: Final = 30.0
START_DEADLINE_S: Final = 300.0
"""Reading a saved memory image back, or zeroing huge pages, takes a minute for every 64 GiB or so."""
HEALTH_DEADLINE_S: Final = 5.0
GUEST_DEADLINE_S: Final = 2.0
"""QEMU answers within a millisecond or two, each; one that takes longer is left out, not waited for."""
REBOOT_GRACE_S: Final = 20.0
"""How long a guest has to begin its reboot before it is taken for deaf and reset; orderly ones need a few seconds."""
AGENT_GRACE_S: Final = 1.0
"""How long an agent has to take an order; it needs milliseconds, and a mute one must not use up the guest's time."""
PRESS_AGAIN_S: Final = 3.0
"""How often the power button is pressed while waiting: a guest that is still booting misses the first press."""
TCG_CACHE_SINCE: Final = 8_000_000
"""libvirt 8.0.0, the first that can bound the emulator's cache. Source: formatdomain.html, `tb-cache`."""

_HAS_GUEST: Final = frozenset({PowerState.RUNNING, PowerState.PAUSED})
_HAS_ENDED: Final = frozenset({EventKind.STOPPED, EventKind.CRASHED, EventKind.SUSPENDED, EventKind.REMOVED})

_log = logging.getLogger(__name__)


class LibvirtHypervisor(Hypervisor):
    """QEMU guests on this host.

    Args:
        console_log_dir: where serial consoles are logged, one file a VM; made if it does not exist. libvirt's daemon
            writes the files, so the path has to mean the same to it.
        accelerator: KVM or TCG; None finds out. See `hypervisor.accelerator`.
        reboot_grace_s: see `reboot`.
        peers: how other hosts' libvirt and this one's reach each other.

    Raises:
        Unavailable: libvirt-python is not installed.
    """

    def __init__(
        self,
        uri: str,
        console_log_dir: Path,
        accelerator: Accelerator | None = None,
        *,
        call_deadline_s: float = CALL_DEADLINE_S,
        start_deadline_s: float = START_DEADLINE_S,
        reboot_grace_s: float = REBOOT_GRACE_S,
        peers: PeerSettings = NO_PEERS,
    ) -> None:
        if accelerator is Accelerator.SIMULATED:
            raise ValueError("libvirt runs guests under KVM or emulated; only the mock simulates")
        self._connection = LibvirtConnection(
            uri, on_event=self._take_event, on_reconnect=self._resync, call_deadline_s=call_deadline_s
        )
        self._log_dir = console_log_dir.absolute()
        self._accelerator = accelerator
        self._start_deadline_s = start_deadline_s
        self._reboot_grace_s = reboot_grace_s
        self._inventory = Inventory(self._connection.library)
        host = domain_xml.HostTraits(accelerator or Accelerator.TCG, self._log_dir)
        self._operations = DomainOperations(self._connection.library, self._inventory, host)
        self._visits = Visits(self._connection, self._operations)
        self._statistics = DomainStatistics(self._connection)
        self._consoles = DomainConsoles(self._visits)
        self._devices = LibvirtDevices(self._visits)
        self._resizing = LibvirtResizing(self._visits)
        self._host_devices = LibvirtHostDevices(self._connection)
        self._guests = LibvirtGuestAgents(self._visits)
        self._snapshots = LibvirtSnapshots(self._visits)
        pki_path = peers.written_to
        certificates = LibvirtPeerCertificates(self._connection, uri, pki_path) if pki_path is not None else None
        self._migration = LibvirtMigration(self._visits, peers, certificates)
        self._processes = LibvirtProcesses(uri, self._connection.changes_under_way)
        self._log_keeper = ConsoleLogKeeper(self._log_dir)
        self._translator = EventTranslator()
        self._listeners: list[Listener] = []

    # the connection

    async def open(self) -> None:
        """Connect, and learn every VM's state; see `Hypervisor`."""
        await self._connection.open()
        try:
            await self._connection.run_blocking(self._prepare_log_dir)
            self._operations.host = await self._connection.run(self._learn_host)
            self._translator.reset(await self._connection.run(self._states))
            await self._snapshots.thaw_all()
        except BaseException:
            await self._connection.close()
            raise
        self._log_keeper.start()

    async def close(self) -> None:
        """Disconnect and drop all listeners; see `Hypervisor`."""
        await self._log_keeper.stop()
        await self._snapshots.close()
        await self._connection.close()
        self._listeners.clear()

    async def capabilities(self) -> Capabilities:
        """Say what QEMU on this host can do; see `Hypervisor`."""
        return await self._connection.run(self._capabilities)

    async def health(self) -> Health:
        """Make libvirt's daemon answer a call within 5 s; see `Hypervisor`."""
        try:
            await self._connection.run(lambda connection: connection.getLibVersion(), deadline_s=HEALTH_DEADLINE_S)
        except HypervisorError as error:
            return Health(healthy=False, message=str(error))
        return Health(healthy=True)

    # optional powers

    @property
    def snapshots(self) -> Snapshots | None:
        """See `Hypervisor`."""
        return self._snapshots

    @property
    def devices(self) -> Devices | None:
        """See `Hypervisor`."""
        return self._devices

    @property
    def resizing(self) -> Resizing | None:
        """See `Hypervisor`."""
        return self._resizing

    @property
    def host_devices(self) -> HostDevices | None:
        """See `Hypervisor`."""
        return self._host_devices

    @property
    def guests(self) -> GuestAgents | None:
        """See `Hypervisor`."""
        return self._guests

    @property
    def statistics(self) -> Statistics | None:
        """See `Hypervisor`."""
        return self._statistics

    @property
    def migration(self) -> Migration | None:
        """See `Hypervisor`."""
        return self._migration

    @property
    def processes(self) -> VmProcesses | None:
        """See `Hypervisor`."""
        return self._processes

    # definitions

    async def create(self, config: VmConfig) -> None:
        """Define a domain; see `Hypervisor`."""
        domain_xml.require_uuid(config.vm_id)
        await self._visits.change(config.vm_id, partial(self._operations.create, config))

    async def reconfigure(self, config: VmConfig) -> None:
        """Define the domain anew, under the name it has and with the VNC password we made for it before.

        The domain's name is for people who use other tools; a renamed VM keeps it, since libvirt's NVRAM and log files
        go by it. See `Hypervisor`.
        """
        await self._visits.change(config.vm_id, partial(self._operations.reconfigure, config))

    async def delete(self, vm_id: str) -> None:
        """Undefine the domain with its NVRAM, saved memory, snapshot records and console log; see `Hypervisor`."""
        if domain_xml.is_uuid(vm_id):
            await self._visits.change(vm_id, partial(self._operations.delete, vm_id))

    async def set_notes(self, vm_id: str, notes: VmNotes) -> None:
        """Keep them in the domain's metadata; see `Hypervisor`."""
        await self._visits.change(vm_id, partial(self._operations.set_notes, vm_id, notes))

    # power

    async def start(self, vm_id: str, may_run: Callable[[], None] | None = None) -> None:
        """Boot, or restore from saved memory; see `Hypervisor`."""
        start = partial(self._operations.start, vm_id, may_run=may_run)
        await self._visits.change(vm_id, start, deadline_s=self._start_deadline_s)

    async def stop(self, vm_id: str, timeout_s: float) -> None:
        """Have the guest's agent shut it down, or else press the power button; see `Hypervisor`.

        The button is pressed at once where no agent takes the order within a second, and again every 3 s until libvirt
        says that the domain stopped. A domain without a definition, as other tools may run, is gone with that.
        Cancelling takes back no press: the guest may still shut down.
        """
        press = partial(self._operations.press_power_button, vm_id)
        with self._watch(vm_id) as watch:
            try:
                async with asyncio.timeout(timeout_s) as scope:
                    was_heard = await self._ask_agent_to_stop(vm_id)
                    is_off = not was_heard and await self._visits.change(vm_id, press)
                    with contextlib.suppress(VmNotFound):
                        while not is_off:
                            await watch.wait(_HAS_ENDED, PRESS_AGAIN_S)
                            is_off = await self._visits.change(vm_id, press)
            except TimeoutError:
                if not scope.expired():
                    raise
                if (await self.status(vm_id)).state not in OFF:
                    raise GuestDidNotStop(vm_id, timeout_s) from None

    async def _ask_agent_to_stop(self, vm_id: str) -> bool:
        """Return whether the agent took the order in time; one that is slow may still obey."""
        ask = partial(self._operations.ask_agent_to_stop, vm_id)
        asking = asyncio.ensure_future(self._connection.run(ask, lane=Lane.AGENT, vm_id=vm_id))
        try:
            await asyncio.wait({asking}, timeout=AGENT_GRACE_S)
            return asking.result() if asking.done() else False
        except Unavailable:  # every thread for agents waits for one
            return False
        finally:
            asking.cancel()

    async def force_stop(self, vm_id: str) -> None:
        """Kill the domain's process, or drop its saved memory; see `Hypervisor`.

        Does not wait for other operations on the VM: where these hang, it is what ends them. libvirt gives a process
        10 s to end by itself before it kills it.
        """
        await self._connection.run(partial(self._operations.force_stop, vm_id), lane=Lane.KILL, vm_id=vm_id)

    async def reboot(self, vm_id: str) -> None:
        """Press the power button, and turn the machine on again once it is off; reset a guest that does not react.

        Waits until the reboot began. A guest has `reboot_grace_s` to react. One that has not by then is reset, unless
        its agent is connected: then its system is up, has heard, and takes its time, and the call returns. See
        `Hypervisor`.

        Raises:
            Unavailable: libvirt was lost meanwhile; whether the guest reboots is unknown.
        """
        with self._watch(vm_id) as watch:
            can_hear = await self._visits.change(vm_id, partial(self._operations.ask_to_reboot, vm_id))
            wanted = _HAS_ENDED | {EventKind.REBOOTED, EventKind.RESYNC}
            kind = await watch.wait(wanted, self._reboot_grace_s)
            if kind is EventKind.RESYNC:
                raise Unavailable(f"libvirt was lost while VM {vm_id} rebooted; whether it did is unknown")
            if kind in _HAS_ENDED:
                raise WrongState(vm_id, "reboot", (await self.status(vm_id)).state.value)
            if kind is None and not can_hear:
                await self._visits.change(vm_id, partial(self._operations.reset, vm_id))

    async def pause(self, vm_id: str) -> None:
        """See `Hypervisor`."""
        await self._visits.change(vm_id, partial(self._operations.pause, vm_id))

    async def resume(self, vm_id: str) -> None:
        """See `Hypervisor`."""
        await self._visits.change(vm_id, partial(self._operations.resume, vm_id))

    async def suspend(self, vm_id: str) -> None:
        """Save the guest's memory where libvirt keeps it; see `Hypervisor`."""
        await self._visits.change(vm_id, partial(self._operations.suspend, vm_id), deadline_s=self._start_deadline_s)

    # looking

    async def status(self, vm_id: str, *, with_memory: bool = True) -> VmStatus:
        """See `Hypervisor`."""
        status = await self._visits.look(vm_id, self._inventory.read_one)
        if not with_memory:
            return status

        def read_memory(connection: Any) -> GuestMemory:
            return self._inventory.read_guest_memory_of(self._operations.find(connection, vm_id))

        return (await self._with_guest_memory([status], read_memory))[0]

    async def list(self) -> Sequence[VmStatus]:
        """Every domain, by a number of calls that does not grow with theirs; see `Hypervisor`."""
        statuses = await self._connection.run(self._inventory.read_all)
        return await self._with_guest_memory(statuses, self._inventory.read_guest_memory)

    async def console_kinds(self, vm_id: str) -> Sequence[ConsoleKind]:
        """Read them from the running domain's definition; see `Hypervisor`."""
        return await self._consoles.kinds(vm_id)

    async def open_console(self, vm_id: str, kind: ConsoleKind) -> socket.socket:
        """Have libvirt hand out a connection to QEMU's display, or its own to the serial line; see `Hypervisor`."""
        return await self._consoles.open(vm_id, kind)

    async def set_console_password(self, vm_id: str, password: str, valid_s: float) -> None:
        """See `Hypervisor`; the time counts by the host's clock, to the second."""
        await self._consoles.set_password(vm_id, password, valid_s)

    async def read_console_log(self, vm_id: str, offset: int, max_bytes: int) -> ConsoleLog:
        """Read the VM's log file; see `Hypervisor`.

        Raises:
            Refused: the file cannot be read by us.
            ValueError: `offset` or `max_bytes` out of range.
        """
        return await self._visits.look(vm_id, partial(self._operations.read_log, vm_id, offset, max_bytes))

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """See `Hypervisor`; a listener that is subscribed twice is called twice."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            with contextlib.suppress(ValueError):
                self._listeners.remove(listener)

        return unsubscribe

    # events, in the loop

    def _take_event(self, raw: RawEvent) -> None:
        self._inventory.forget(raw)
        self._devices.note(raw)
        for event in self._translator.translate(raw):
            self._tell(event)

    def _tell(self, event: VmEvent) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:  # noqa: BLE001  # a listener is not ours; its fault is told and ends here
                _log.exception("a listener failed; the others still get the event", extra={"vm_id": event.vm_id})

    async def _resync(self) -> None:
        self._inventory.clear()
        self._translator.reset(await self._connection.run(self._states))
        self._tell(VmEvent(EventKind.RESYNC, detail="libvirt was away; events may have been missed"))
        await self._snapshots.thaw_all()

    @contextlib.contextmanager
    def _watch(self, vm_id: str) -> Iterator[_Watch]:
        """Note this VM's events from here on."""
        watch = _Watch(vm_id)
        unsubscribe = self.subscribe(watch.note)
        try:
            yield watch
        finally:
            unsubscribe()

    # visits to a worker thread

    async def _with_guest_memory(
        self, statuses: Sequence[VmStatus], read: Callable[[Any], GuestMemory]
    ) -> Sequence[VmStatus]:
        """Put in what running guests say of their memory; leave it out where one that hangs would keep us waiting."""
        if all(status.state not in _HAS_GUEST for status in statuses):
            return statuses
        try:
            memory = await self._connection.run(read, lane=Lane.GUEST, deadline_s=GUEST_DEADLINE_S)
        except HypervisorError:  # hung, or gone since: what we have is true as of when it was read
            return statuses
        return [
            dataclasses.replace(status, memory_used_bytes=memory[status.vm_id])
            if status.state in _HAS_GUEST and status.vm_id in memory
            else status
            for status in statuses
        ]

    # everything below runs in worker threads

    def _prepare_log_dir(self) -> None:
        try:
            self._log_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"the directory for console logs, {self._log_dir}, cannot be made: {error}") from error

    def _learn_host(self, connection: Any) -> domain_xml.HostTraits:
        accelerator = self._accelerator or detect_accelerator()
        return domain_xml.HostTraits(
            accelerator=accelerator,
            console_log_dir=self._log_dir,
            supports_tcg_cache=connection.getLibVersion() >= TCG_CACHE_SINCE,
            hyperv_features=host_abilities.hyperv_features_of(connection, accelerator),
            virtualization_flag=host_abilities.virtualization_flag(accelerator),
            cpu_mhz=int(connection.getInfo()[3]),
            numa_nodes=host_abilities.numa_nodes_of(connection),
        )

    def _states(self, connection: Any) -> dict[str, PowerState]:
        return {vm.vm_id: vm.state for vm in self._inventory.read_all(connection)}

    def _capabilities(self, connection: Any) -> Capabilities:
        kind = "kvm" if self._operations.host.accelerator is Accelerator.KVM else "qemu"
        return Capabilities(
            name="libvirt",
            version=f"QEMU {_version(connection.getVersion())}, libvirt {_version(connection.getLibVersion())}",
            accelerator=self._operations.host.accelerator,
            max_vcpus=domain_xml.read_max_vcpus(connection.getDomainCapabilities(None, "x86_64", "q35", kind)),
            # Not getInfo(), which goes by NUMA nodes and misses memory that was added while the host ran.
            max_memory_bytes=connection.getMemoryStats(-1)["total"] * 1024,
            supports_live_migration=not self._migration.find_obstacle(),
            supports_snapshots=self.snapshots is not None,
            supports_hotplug=self.devices is not None,
            abilities=host_abilities.read_abilities(
                connection, self._connection.library, self._operations.host.accelerator
            ),
            host_networks=host_abilities.active_networks(connection, self._connection.library),
        )


class _Watch:
    """The events of one VM since a moment, and what concerns every VM."""

    def __init__(self, vm_id: str) -> None:
        self._vm_id = vm_id
        self._kinds: list[EventKind] = []
        self._has_news = asyncio.Event()

    def note(self, event: VmEvent) -> None:
        """Take an event."""
        if event.vm_id == self._vm_id or event.kind is EventKind.RESYNC:
            self._kinds.append(event.kind)
            self._has_news.set()

    async def wait(self, wanted: Collection[EventKind], limit_s: float) -> EventKind | None:
        """Return the first wanted kind, or RESYNC, since the last wait; None if none comes within `limit_s`."""
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    await self._has_news.wait()
                    self._has_news.clear()
                    while self._kinds:
                        kind = self._kinds.pop(0)
                        if kind in wanted or kind is EventKind.RESYNC:
                            return kind
        except TimeoutError:
            return None


def _version(number: int) -> str:
    """Write a version as libvirt counts them: 1,000,000 x major + 1,000 x minor + release."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
