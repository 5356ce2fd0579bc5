"""A host: its machine, the daemon with the product's self-fencing, the guard, and VMs that really run or do not."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from controlplane.domain.ha_times import HaTimes
from controlplane.domain.migration_truth import Progress
from limiquantix.compute.v1.node_service_pb2 import (
    AnnounceShutdownRequest,
    UpdateHeartbeatRequest,
    UpdateHeartbeatResponse,
)
from limiquantix.errors import ApiError
from nodedaemon.registration import ASK_AGAIN_S
from nodedaemon.self_fencing.keeper import TEND_S, SelfFencing
from nodedaemon.self_fencing.lease import Known
from nodedaemon.self_fencing.orders import Orders
from tests.simulation.cluster.commands import Commands
from tests.simulation.cluster.going import call_off
from tests.simulation.cluster.kernel import Ask, Clock, Kernel, Network, Process, Resume
from tests.simulation.cluster.rules import Rules

if TYPE_CHECKING:
    from hypervisor.processes import VmProcesses
    from nodedaemon.self_fencing.guard_link import GuardLink
    from nodedaemon.self_fencing.memory import HaMemory

HEARTBEAT_LIMIT_S = 2.0
GUARD_TICK_S = 0.05


@dataclass(slots=True)
class Disk:
    """What survives everything."""

    known: Known = field(default_factory=Known)
    protected: frozenset[str] = frozenset()
    shut_in: str = ""
    generations: dict[str, int] = field(default_factory=dict)
    """The newest that was taken, by VM."""
    defined: set[str] = field(default_factory=set)


class Memory:
    """The daemon's memory: on the disk once its writing ended, or a moment before it dies."""

    def __init__(self, host: Host) -> None:
        self._host = host

    @property
    def known(self) -> Known:
        return self._host.disk.known

    @property
    def protected(self) -> frozenset[str]:
        return self._host.disk.protected

    async def remember(self, known: Known) -> None:
        await self._write()
        now = self._host.disk.known
        newest = known if known.ha_version > now.ha_version else now
        self._host.disk.known = Known(
            max(known.epoch, now.epoch), max(known.fence_token, now.fence_token), newest.ha_version, newest.is_armed
        )

    async def protect(self, vm_id: str, *, is_protected: bool) -> None:
        if is_protected != (vm_id in self._host.disk.protected):
            await self._write()
            before = self._host.disk.protected
            self._host.disk.protected = before | {vm_id} if is_protected else before - {vm_id}

    @property
    def shut_in(self) -> str:
        return self._host.disk.shut_in

    async def shut(self, boot_id: str) -> None:
        await self._write()
        self._host.disk.shut_in = boot_id

    async def _write(self) -> None:
        draw = self._host.kernel.random
        await self._host.daemon.sleep(draw.uniform(0.5, 3.0) if draw.random() < 0.02 else draw.uniform(0.001, 0.02))


class Processes:
    """How the daemon kills."""

    pid_dir = "/run/vms"

    def __init__(self, host: Host) -> None:
        self._host = host

    def under_way(self) -> Collection[object]:
        return frozenset(self._host.starting)

    async def kill(self, vm_ids: Collection[str]) -> Collection[str]:
        await self._host.daemon.sleep(self._host.kill_delay_s())
        killed = self._host.in_memory() & set(vm_ids)
        if self._host.rules.self_fences and self._host.fencing.lease.must_kill(self._host.clock.now_ns()):
            self._host.kill(killed, "the daemon")
            return killed
        return ()


class Link:
    """How the daemon tells the guard."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def last_orders(self, boot_id: str) -> Orders | None:
        return self._host.orders

    def tell(self, orders: Orders) -> None:
        if orders != self._host.orders:
            self._host.orders = orders
            self._host.wind_guard()

    def tend(self) -> None:
        """Nothing: the guard is kept running by the host's service manager."""

    def report(self) -> None:
        return None

    def obstacle(self) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The message, and what the host says that it runs."""

    request: UpdateHeartbeatRequest
    running: frozenset[str]


Take = Callable[[str, Heartbeat, Callable[[Any], None]], bool]
"""How a heartbeat gets to a control plane by name; returns whether it was answered at once."""


@dataclass(slots=True)
class Host:
    """One host. `on_start` is told of every VM that begins to run."""

    id: str
    kernel: Kernel
    network: Network
    rules: Rules
    times: HaTimes
    planes: Collection[str]
    take: Take
    hear_out: Callable[[str, AnnounceShutdownRequest, Callable[[Any], None]], bool]
    """How it tells a control plane that it goes."""
    on_start: Callable[[Host, str], None]
    can_self_fence: bool = True
    clock: Clock = field(init=False)
    daemon: Process = field(init=False)
    guard: Process = field(init=False)
    disk: Disk = field(default_factory=Disk)
    orders: Orders | None = None
    running: set[str] = field(default_factory=set)
    paused: set[str] = field(default_factory=set)
    """Guests that stand still here, since the other host of their migration may have them."""
    incoming: dict[str, int] = field(default_factory=dict)
    """VMs that may arrive, by the keys of their migrations."""
    arriving: set[str] = field(default_factory=set)
    """Those of them that are being sent."""
    sending: dict[str, tuple[int, Progress]] = field(default_factory=dict)
    """How the last migration of each VM away from here goes, and its key."""
    peers: dict[str, Host] = field(default_factory=dict)
    commands: Commands = field(init=False)
    starting: set[object] = field(default_factory=set)
    """Marks of starts that are under way in the hypervisor."""
    boot_count: int = 0
    is_on: bool = False
    is_closed: bool = False
    """Whether no change of a VM is let in any more, since it goes down."""
    is_mute: bool = False
    """Whether its heartbeats say nothing of VMs, as while the hypervisor does not answer."""
    last_word: AnnounceShutdownRequest | None = None
    """What it said last of going down."""
    is_unplugged: bool = False
    """Whether somebody sees to it that it stays off."""
    frozen_until_s: float = 0.0
    fencing: SelfFencing = field(init=False)
    next_start_s: float = 0.0
    """How long the next start hangs; 0 for what is drawn then."""
    holds_starts: bool = False
    """Whether starts hang until `let_starts_go_on`."""
    is_patient: bool = False
    """Whether it always waits long for the answer to a heartbeat, and not by chance."""
    guard_rests_until_s: float = 0.0
    held_starts: list[Resume] = field(default_factory=list)
    _due: tuple[int, float] = (0, 0.0)

    def __post_init__(self) -> None:
        self.clock = Clock(self.kernel, self.times.clock_drift)
        self.daemon = Process(self.kernel, f"{self.id}.daemon", self.clock)
        self.guard = Process(self.kernel, f"{self.id}.guard", self.clock)
        self.commands = Commands(self)

    # machine

    def boot(self) -> None:
        """Switch it on; nothing runs yet."""
        if self.is_on or self.is_unplugged:
            return
        self.kernel.note(f"{self.id} boots")
        self.is_on = True
        self.boot_count += 1
        self.orders = None
        self.guard.begin()
        self.begin_daemon()

    def lose_power(self) -> None:
        """Everything ends."""
        if self.is_on:
            self.kernel.note(f"{self.id} loses its power; it ran {sorted(self.running)}")
            self.is_on = False
            self.daemon.die()
            self.guard.die()
            for vm_id, (key, _) in self.sending.items():
                for peer in self.peers.values():
                    self._gives_up_later(peer, vm_id, key)
            for gone in (self.running, self.paused, self.incoming, self.arriving, self.sending):
                gone.clear()
            self.frozen_until_s = 0.0

    def _gives_up_later(self, peer: Host, vm_id: str, key: int) -> None:
        delay_s = self.kernel.random.uniform(0.1, 25.0)
        self.kernel.after(delay_s, lambda: peer.commands.give_up_arrival(vm_id, key))

    def freeze(self, span_s: float) -> None:
        """Stop the whole machine, guests included; its clock goes on, and the guard is the first to go on after."""
        self.frozen_until_s = self.kernel.now_s + span_s
        self.guard.pause(span_s)
        self.daemon.pause(span_s + 0.001)

    def executes(self, vm_id: str) -> bool:
        """Whether a VM does anything now."""
        return vm_id in self.running and self.kernel.now_s >= self.frozen_until_s

    # guard

    def wind_guard(self) -> None:
        """Have the guard look when the lease that it knows of ends."""
        orders = self.orders
        if orders is None or not orders.is_armed or not self.guard.is_up or not self.rules.has_guard:
            return
        left_s = max(0.0, (orders.end_ns - self.clock.now_ns()) / 1e9)
        late_s = self.kernel.random.uniform(0.0, GUARD_TICK_S)
        self.guard.at(self.kernel.now_s + self.clock.true_span(left_s) + late_s, self._guard_looks)

    def _guard_looks(self) -> None:
        orders = self.orders
        if orders is None or not orders.must_kill(self.clock.now_ns()) or not self.rules.self_fences:
            return
        doomed = self.in_memory() & set(orders.vm_ids)
        if not doomed:
            return
        if self.kernel.now_s < self.frozen_until_s + 0.002 and self.frozen_until_s:
            self.kill(doomed, "the guard, first thing after a freeze")
            return
        if self._due[0] != orders.end_ns:
            self._due = (orders.end_ns, self.kernel.now_s + self.kill_delay_s())
        self.guard.at(self._due[1], self._guard_kills)

    def _guard_kills(self) -> None:
        if self.orders is not None and self.orders.must_kill(self.clock.now_ns()):
            self.kill(self.in_memory() & set(self.orders.vm_ids), "the guard")

    def kill_delay_s(self) -> float:
        """Draw how long killing takes, within what is promised, in true time."""
        return self.clock.true_span(self.kernel.random.uniform(0.0, self.times.kill_s - 2 * GUARD_TICK_S))

    def kill(self, vm_ids: Collection[str], who: str) -> None:
        """End VMs."""
        if vm_ids:
            self.kernel.note(f"{self.id}: {who} kills {sorted(vm_ids)}")
            self.end(vm_ids)

    # VMs

    def in_memory(self) -> set[str]:
        """Return all VMs that have a process here."""
        return self.running.union(self.paused, self.incoming)

    def run(self, vm_id: str) -> None:
        """Have a VM run, from now on."""
        self.paused.discard(vm_id)
        self.running.add(vm_id)
        self.disk.defined.add(vm_id)
        self.on_start(self, vm_id)
        self.wind_guard()

    def end(self, vm_ids: Collection[str]) -> None:
        """End the processes of VMs."""
        for vm_id in vm_ids:
            self.running.discard(vm_id)
            self.paused.discard(vm_id)
            self.arriving.discard(vm_id)
            self.incoming.pop(vm_id, None)

    # daemon

    def begin_daemon(self) -> None:
        """Start the daemon, which knows what is on the disk."""
        if not self.is_on or self.daemon.is_up:
            return
        self.daemon.begin()
        self.is_closed = self.is_mute = False
        self.starting.clear()  # a start ends with the daemon that asked for it
        if not self.rules.remembers:
            self.disk.known = Known()
        memory, processes, link = Memory(self), Processes(self), Link(self)
        self.fencing = SelfFencing(
            cast("HaMemory", memory),
            cast("VmProcesses", processes),
            cast("GuardLink", link),
            boot_id=f"{self.id}-{self.boot_count}",
            kill_ms=int(self.times.kill_s * 1000),
            obstacle="" if self.can_self_fence else "by its configuration",
            now_ns=self.clock.now_ns,
            sleep=self._sleep,
        )
        self.daemon.keep(self.fencing.run())
        if self.fencing.is_shut:
            self.daemon.keep(call_off(self))
        for plane in self.planes:
            self.daemon.keep(self._beat(plane))

    async def _sleep(self, span_s: float) -> None:
        """Wait as the daemon's watch over its lease does; twice as long where it only looks by the way, for speed."""
        await self.daemon.sleep(2 * span_s if span_s >= TEND_S else span_s)

    async def _beat(self, plane: str) -> None:
        interval_s = self.times.heartbeat_interval_s
        await self.daemon.sleep(interval_s * self.kernel.random.random())
        while True:
            request = UpdateHeartbeatRequest(node_id=self.id)
            self.fencing.describe(request)
            request.running_vm_count = 0 if self.is_mute else len(self.running)
            sent_ns = self.clock.now_ns()
            message = Heartbeat(request, frozenset(self.running))
            is_patient = self.is_patient or self.kernel.random.random() < 0.5
            limit_s = HEARTBEAT_LIMIT_S * (4 if is_patient else 1)
            serve = lambda answer, message=message: self.take(plane, message, answer)  # noqa: E731
            try:
                asked: Ask = self.network.call(self.daemon, self.id, plane, serve, limit_s)
                response: UpdateHeartbeatResponse = await asked
                if not self.rules.counts_from_sending:
                    sent_ns = self.clock.now_ns()
                await self.fencing.take_answer(sent_ns, response)
                if not self.fencing.is_informed and response.HasField("fences_read_ms_ago"):
                    await self.daemon.sleep(ASK_AGAIN_S)
                    continue
            except ApiError:
                pass
            left_s = interval_s - (self.clock.now_ns() - sent_ns) / 1e9
            await self.daemon.sleep(max(0.05, left_s))

    def let_starts_go_on(self) -> None:
        """End what `holds_starts` began."""
        self.holds_starts = False
        for resume in self.held_starts:
            self.daemon.at(self.kernel.now_s, lambda resume=resume: resume(None, None))  # type: ignore[misc]
        self.held_starts.clear()

    def start_delay_s(self) -> float:
        """Draw how long a start takes in the hypervisor."""
        draw = self.kernel.random
        if self.next_start_s:
            delay_s, self.next_start_s = self.next_start_s, 0.0
            return delay_s
        return draw.uniform(5.0, 60.0) if not self.network.is_calm and draw.random() < 0.03 else draw.uniform(0.05, 0.5)
