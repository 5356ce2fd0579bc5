"""What a daemon does with commands: gates in the order in which the product has them, and VMs that come and go."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlplane.domain.migration_truth import Progress, Sight
from limiquantix.errors import Aborted, FailedPrecondition, Reason, Unavailable
from tests.simulation.cluster.kernel import Ask

if TYPE_CHECKING:
    from tests.simulation.cluster.host import Host

HANGS_UP_S = 5.0
"""After which a source no longer waits for the other host to say that it has the guest."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a control plane asks of a host about one VM, with what it knew when it decided that.

    Attributes:
        key: of the migration that it belongs to.
        peer_id: the host to send the VM to.
    """

    does: str
    vm_id: str
    epoch: int
    token: int
    generation: int
    protects: bool = False
    key: int = 0
    peer_id: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """What a host says of a VM, and of the migration away from it."""

    sight: Sight
    progress: Progress


class Commands:
    """One a host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._do: dict[str, Callable[[Command], Coroutine[Any, Any, bool]]] = {
            "start": self._start,
            "stop": self._stop,
            "prepare": self._prepare,
            "send": self._send,
            "tidy": self._tidy,
        }

    def take(self, command: Command, answer: Callable[[Any], None]) -> bool:
        """Take a command; never answers at once."""
        host = self._host
        if not host.is_on or not host.daemon.is_up:
            return False

        def done(result: Any, error: BaseException | None) -> None:
            answer(error if error is not None else result)

        host.daemon.at(host.kernel.now_s, lambda: host.daemon.spawn(self._carry_out(command), done))
        return False

    def look(self, vm_id: str, key: int, answer: Callable[[Any], None]) -> bool:
        """Say what is here of a VM."""
        host = self._host
        if not host.is_on or not host.daemon.is_up:
            return False
        host.daemon.at(host.kernel.now_s, lambda: answer(self._view(vm_id, key)))
        return False

    def _view(self, vm_id: str, key: int) -> View:
        host = self._host
        if vm_id in host.running:
            sight = Sight.RUNNING
        elif vm_id in host.paused or vm_id in host.arriving:
            sight = Sight.PAUSED
        else:
            sight = Sight.OFF if vm_id in host.disk.defined else Sight.ABSENT
        known_key, progress = host.sending.get(vm_id, (0, Progress.UNKNOWN))
        return View(sight, progress if known_key == key else Progress.UNKNOWN)

    async def _carry_out(self, command: Command) -> bool:
        host, rules = self._host, self._host.rules
        self._require_open()
        if rules.hears_first:
            await host.fencing.until_informed()
            self._require_open()
        if rules.checks_token:
            await host.fencing.take_told(command.epoch, command.token)
        self._require_newest(command)
        host.disk.generations[command.vm_id] = max(command.generation, host.disk.generations.get(command.vm_id, 0))
        return await self._do[command.does](command)

    def _require_open(self) -> None:
        if (self._host.is_closed or self._host.fencing.is_shut) and self._host.rules.shuts_door:
            raise Unavailable(Reason.STOPPING, "the host goes down")

    def _require_newest(self, command: Command) -> None:
        self._require_open()
        if self._host.rules.checks_token:
            self._host.fencing.require_newest(command.epoch, command.token)
        if (
            command.generation < self._host.disk.generations.get(command.vm_id, 0)
            and self._host.rules.checks_generation
        ):
            raise Aborted(Reason.STALE_GENERATION, "a newer command was taken")

    # power

    async def _start(self, command: Command) -> bool:
        host, vm_id = self._host, command.vm_id
        fencing = host.fencing
        if command.protects and host.rules.protects_first:
            await fencing.protect(vm_id, is_protected=True)
        if vm_id in host.running:
            return fencing.is_protected(vm_id)
        self._require_newest(command)
        fencing.require_lease(vm_id)
        mark = object()
        host.starting.add(mark)  # it is there, but does nothing yet
        await (Ask(host.held_starts.append) if host.holds_starts else host.daemon.sleep(host.start_delay_s()))
        host.starting.discard(mark)
        if host.rules.rechecks_start:
            self._require_newest(command)
            fencing.require_lease(vm_id)
        if vm_id not in host.running:
            host.kernel.note(f"{host.id} runs {vm_id} (token {command.token}, generation {command.generation})")
            host.run(vm_id)
        return fencing.is_protected(vm_id) or (command.protects and not host.rules.protects_first)

    async def _stop(self, command: Command) -> bool:
        host = self._host
        await host.daemon.sleep(host.kernel.random.uniform(0.05, 1.0))
        self._require_newest(command)
        host.end({command.vm_id})
        host.kernel.note(f"{host.id} stops {command.vm_id} (generation {command.generation})")
        return False

    # migrations

    async def _prepare(self, command: Command) -> bool:
        host, vm_id = self._host, command.vm_id
        if vm_id in host.running or vm_id in host.paused:
            raise FailedPrecondition(Reason.VM_STATE_FORBIDS, "it is here")
        if command.protects:
            await host.fencing.protect(vm_id, is_protected=True)
        host.fencing.require_lease(vm_id)
        await host.daemon.sleep(host.kernel.random.uniform(0.05, 0.5))
        self._require_newest(command)
        host.disk.defined.discard(vm_id)  # left from when it ran here; the product removes it when the host is back
        host.incoming[vm_id] = command.key
        return host.fencing.is_protected(vm_id)

    async def _send(self, command: Command) -> bool:
        """Begin to send; the hypervisor goes on with it, also without the daemon."""
        host, vm_id = self._host, command.vm_id
        if vm_id not in host.running:
            raise FailedPrecondition(Reason.VM_STATE_FORBIDS, "it does not run here")
        host.sending[vm_id] = command.key, Progress.UNDER_WAY
        peer = host.peers[command.peer_id]
        if peer.incoming.get(vm_id) == command.key:
            peer.arriving.add(vm_id)
        self._machine_after(host.kernel.random.uniform(0.3, 6.0), lambda: self._switch_over(command))
        return True

    def _switch_over(self, command: Command) -> None:
        """Stop the guest here, and send what it is: from now on it never goes on here by itself."""
        host, vm_id, peer = self._host, command.vm_id, self._host.peers[command.peer_id]
        is_cut = {(host.id, peer.id), (peer.id, host.id)} & host.network.cut
        if vm_id not in host.running or is_cut or not peer.is_on or peer.incoming.get(vm_id) != command.key:
            host.sending[vm_id] = command.key, Progress.FAILED
            self._machine_after(
                host.kernel.random.uniform(0.1, 5.0), lambda: peer.commands.give_up_arrival(vm_id, command.key)
            )
            return
        host.kernel.note(f"{host.id} hands {vm_id} over to {peer.id}")
        if host.rules.stops_source:
            host.running.discard(vm_id)
            host.paused.add(vm_id)
        host.network.send(host.id, peer.id, lambda: peer.commands.arrive(command, host))
        self._machine_after(HANGS_UP_S, lambda: self._hang_up(command))

    def arrive(self, command: Command, source: Host) -> None:
        """Run a guest that was sent, if this host still expects it; and say so."""
        host, vm_id = self._host, command.vm_id
        if host.kernel.now_s < host.frozen_until_s:
            host.kernel.at(host.frozen_until_s + 0.01, lambda: self.arrive(command, source))
            return
        if not host.is_on or host.incoming.get(vm_id) != command.key:
            return
        host.end({vm_id})
        host.kernel.note(f"{vm_id} arrives on {host.id}")
        host.run(vm_id)
        host.network.send(host.id, source.id, lambda: source.commands.let_go(command))

    def let_go(self, command: Command) -> None:
        """Forget a guest that the other host has."""
        host = self._host
        if host.is_on and host.sending.get(command.vm_id) == (command.key, Progress.UNDER_WAY):
            host.paused.discard(command.vm_id)
            host.disk.defined.discard(command.vm_id)
            host.sending[command.vm_id] = command.key, Progress.COMPLETE

    def give_up_arrival(self, vm_id: str, key: int) -> None:
        """Notice that the sender is gone."""
        if self._host.incoming.get(vm_id) == key:
            self._host.end({vm_id})

    def _hang_up(self, command: Command) -> None:
        """Take the connection for broken; so does the other host, sooner or later, if it has not the guest by then."""
        host, vm_id, key = self._host, command.vm_id, command.key
        if host.sending.get(vm_id) == (key, Progress.UNDER_WAY):
            host.sending[vm_id] = key, Progress.UNKNOWN
            peer = host.peers[command.peer_id]
            host.kernel.after(host.kernel.random.uniform(0.1, 20.0), lambda: peer.commands.give_up_arrival(vm_id, key))

    async def _tidy(self, command: Command) -> bool:
        """Remove what a migration left here that did not end, or ended, with the VM on the other host."""
        host, vm_id = self._host, command.vm_id
        await host.daemon.sleep(host.kernel.random.uniform(0.01, 0.2))
        self._require_newest(command)
        if vm_id in host.running:
            raise FailedPrecondition(Reason.VM_STATE_FORBIDS, "it runs here")
        host.end({vm_id})
        host.disk.defined.discard(vm_id)
        return True

    def _machine_after(self, span_s: float, event: Callable[[], None]) -> None:
        """Have the machine do something, in this boot, and not while it is frozen."""
        host, boot_count = self._host, self._host.boot_count

        def happen() -> None:
            if not host.is_on or host.boot_count != boot_count:
                return
            if host.kernel.now_s < host.frozen_until_s:
                host.kernel.at(host.frozen_until_s + 0.01, happen)
            else:
                event()

        host.kernel.after(span_s, happen)
