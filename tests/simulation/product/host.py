"""A hypervisor host: its machine, its disk, the real node daemon over the mock hypervisor, and its guard.

Guests outlive the daemon and die with the machine. The mock keeps them in the daemon's memory and in a file; what it
has in memory when the daemon dies is written down here, since a guest's process would go on. The guard is the decision
of the real one (`Orders.must_kill`) on the real orders, four times a second, and dies only with its machine.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypervisor.mock import migration as mock_migration
from hypervisor.mock import store as mock_store
from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.dock import Dock, dock_beside
from hypervisor.types import EventKind, PowerState
from limiquantix.compute.v1.node_service_pb2 import AnnounceShutdownRequest
from nodedaemon.composition.background import catch_up, planned_shutdown, run_background
from nodedaemon.composition.core import Core, open_core, open_servicer
from nodedaemon.composition.listening import listen
from nodedaemon.composition.machine import Machine as HostIdentity
from nodedaemon.config import NodeConfig
from nodedaemon.identity.files import IdentityFile
from nodedaemon.self_fencing.orders import Orders, read_orders
from tests.simulation.product.loop import Machine, Process, Violation, VirtualLoop
from tests.simulation.product.network import Network

GUARD_TICK_S = 0.25
STOP_LIMIT_S = 60.0
"""What systemd gives the daemon to end."""
IN_MEMORY = frozenset({PowerState.RUNNING, PowerState.PAUSED})


class _Strangers(dict[Path, Any]):
    """Hosts of other processes: a simulated host knows no other one as one of its own process."""

    def __setitem__(self, key: Path, value: Any) -> None:
        """Forget it."""


mock_migration._neighbours = _Strangers()  # type: ignore[assignment]


class Host:
    """One host, through all its boots."""

    def __init__(
        self,
        loop: VirtualLoop,
        network: Network,
        number: int,
        directory: Path,
        planes: str,
        changed: Callable[[str, str, bool], None],
    ) -> None:
        """Lay it out, without power.

        Args:
            changed: told the host, the VM and whether it is in memory, at the moment when that changes.
        """
        self.name = f"host-{number}"
        self.machine = Machine(loop, self.name, drift=0.0005)
        self.daemon: Process | None = None
        self.is_on = self.is_kept_off = False
        self.boot_count = 0
        self._loop, self._network, self._changed = loop, network, changed
        self._directory = directory / self.name
        self._directory.mkdir(parents=True)
        self._state_path = self._directory / "mock-vms.json"
        self._boot_id_path = self._directory / "boot-id"
        self._hypervisor: MockHypervisor | None = None
        self._core: Core | None = None
        self._stop: asyncio.Future[AnnounceShutdownRequest.Kind.ValueType] | None = None
        self._goes_down: Callable[[], None] = self.power_off
        self._guard: Process | None = None
        self._known: set[str] = set()
        self.address = f"10.0.0.{number + 1}"
        network.sites[self.address] = self.name
        self._config = NodeConfig.model_validate(
            {
                "node": {"hostname": self.name, "data_dir": self._directory, "boot_id_path": self._boot_id_path},
                "server": {"listen_address": f"{self.address}:9090"},
                "hypervisor": {
                    "backend": "mock",
                    "storage_path": directory / "images",
                    "mock": {"vcpu_count": 8, "memory_mib": 8192},
                },
                "shutdown": {"vm_stop_secs": 5, "migrate_secs": 20},
                "control_plane": {"address": planes, "registration_enabled": True, "heartbeat_interval_secs": 2},
            }
        )

    # -- the machine

    def power_on(self) -> None:
        """Boot, with the guard and the daemon; not while somebody who works on it keeps it off."""
        if self.is_on or self.is_kept_off:
            return
        self.boot_count += 1
        self.is_on = True
        self._network.off.discard(self.name)
        self.machine.boot()
        self._boot_id_path.write_text(f"{self.name}-boot-{self.boot_count}\n")
        self._loop.note(f"{self.name} boots")
        guard = self._guard = Process(self._loop, f"guard of {self.name}", self.machine)
        guard.spawn(self._keep_guard())
        self.start_daemon()

    def power_off(self) -> None:
        """Lose power: everything in memory is gone."""
        if not self.is_on:
            return
        self.is_on = False
        self._network.off.add(self.name)
        self._loop.note(f"{self.name} loses power")
        for process in (self.daemon, self._guard):
            if process is not None:
                process.die("with its machine")
        self._change_file(lambda vm: PowerState.STOPPED)
        self._change_landed(lambda vm: PowerState.STOPPED)

    def shut_down(self, kind: AnnounceShutdownRequest.Kind.ValueType, back_s: float) -> None:
        """Go down on purpose, as the daemon does that, and be on again so long after."""
        if self.is_on and self._stop is not None and not self._stop.done():
            self._loop.note(f"{self.name} is told to go down: {AnnounceShutdownRequest.Kind.Name(kind)}")
            self._stop.set_result(kind)
            boot = self.boot_count

            def end() -> None:
                if self.boot_count == boot:
                    self.power_off()
                    self._loop.outside(back_s, self.power_on)

            self._goes_down = end
            self._loop.outside(STOP_LIMIT_S, end)

    def freeze(self, span_s: float) -> None:
        """Have the whole machine stand still."""
        for process in (self.daemon, self._guard):
            if process is not None:
                process.pause(span_s)

    def lose_guest(self, vm_id: str) -> None:
        """Have one guest end by itself."""
        self._end({vm_id}, "it crashed")

    # -- the daemon

    def start_daemon(self) -> None:
        """Start it, as systemd does."""
        if not self.is_on or (self.daemon is not None and self.daemon.is_alive):
            return
        self._loop.note(f"daemon of {self.name} starts")
        process = self.daemon = Process(self._loop, f"daemon of {self.name}", self.machine)
        process.at_death.append(self._outlive)
        main = process.spawn(self._run_daemon(process))
        self._loop.buried.append(main)
        main.add_done_callback(lambda task: self._daemon_ended(process, task))

    async def _run_daemon(self, process: Process) -> None:
        config = self._config
        stack = AsyncExitStack()
        self._loop.buried.append(stack)
        identity = HostIdentity(config, IdentityFile.under(config.node.data_dir), None, None)
        core = self._core = await open_core(config, stack, identity)
        assert isinstance(core.hypervisor, MockHypervisor)
        self._hypervisor = core.hypervisor
        core.hypervisor.subscribe(lambda event: self._look_at(event.vm_id))
        for vm_id in sorted(core.hypervisor._host.vms):
            self._look_at(vm_id)  # one may have come before anybody listened
        servicer = await open_servicer(config, stack, core)
        await catch_up(core, servicer)
        port = await listen(config, stack, servicer, core.gate, identity)
        core.report.serve_at(config.server.listen_address, port, config.server.advertise_address)
        background = run_background(config, stack, core, servicer, identity)
        stop = self._stop = self._loop.create_future()
        done, _ = await asyncio.wait([stop, *background], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stop}:
            task.result()
        await planned_shutdown(config, core).carry_out(stop.result())
        self._loop.outside(0.0, self._goes_down)
        await self._loop.create_future()

    def _daemon_ended(self, process: Process, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        self._loop.failure = Violation(f"the daemon of {self.name} ended by itself: {error!r}")
        self._loop.failure.__cause__ = error

    def _outlive(self) -> None:
        """Write down what the daemon's death leaves running, and have it started again."""
        if self._hypervisor is not None:
            mock_store.save(self._state_path, self._hypervisor._host._encoded.values())
            self._hypervisor._migration._dock.leave()
            self._hypervisor = None
        self._core = self._stop = None
        if self.is_on:
            self._loop.outside(self._loop.random.uniform(0.5, 6.0), self.start_daemon)

    # -- guests

    def known(self) -> tuple[int, int, int] | None:
        """What its daemon was told, as epoch, token and version; None while there is none."""
        if self._core is None:
            return None
        known = self._core.fencing.lease.known
        return known.epoch, known.fence_token, known.ha_version

    def in_memory(self) -> set[str]:
        """Ids of guests that run or are paused."""
        return set(self._known)

    def _look_at(self, vm_id: str) -> None:
        vm = None if self._hypervisor is None else self._hypervisor._host.vms.get(vm_id)
        is_between = vm is not None and (vm.is_arriving or vm.departure is not None)
        # One that moves stands still at both ends, and may go on at one of them.
        here = frozenset({PowerState.RUNNING}) if is_between else IN_MEMORY
        self._is_now(vm_id, vm is not None and vm.state in here)

    def _is_now(self, vm_id: str, is_in_memory: bool) -> None:
        if is_in_memory != (vm_id in self._known):
            (self._known.add if is_in_memory else self._known.discard)(vm_id)
            self._changed(self.name, vm_id, is_in_memory)

    async def _keep_guard(self) -> None:
        while True:
            orders = read_orders(str(self._directory / "guard"))
            if orders is not None and orders.boot_id == self._boot_id_path.read_text().strip():
                self._guard_by(orders)
            await asyncio.sleep(GUARD_TICK_S)

    def _guard_by(self, orders: Orders) -> None:
        if not orders.must_kill(int(self.machine.clock_s() * 1e9)):
            return
        if doomed := self._in_memory() & set(orders.vm_ids):
            self._end(doomed, "killed by the guard")

    def _in_memory(self) -> set[str]:
        """Ids of guests that have memory here, whether they may run or stand between two hosts."""
        vms = self._hypervisor._host.vms if self._hypervisor is not None else mock_store.load(self._state_path)
        return {vm_id for vm_id, vm in vms.items() if vm.state in IN_MEMORY} | {
            path.name.partition(".")[0] for path in self._landed()
        }

    def _landed(self) -> list[Path]:
        return Dock(dock_beside(self._state_path)).landed()

    def _end(self, doomed: set[str], why: str) -> None:
        self._loop.note(f"{self.name}: {sorted(doomed)}: {why}")
        if self._hypervisor is not None and self.daemon is not None:
            for vm_id in sorted(doomed & self._hypervisor._host.vms.keys()):
                self.daemon.context.copy().run(self._kill, self._hypervisor._host, vm_id, why)
        else:
            self._change_file(lambda vm: PowerState.CRASHED if vm.config.vm_id in doomed else vm.state)
        self._change_landed(lambda vm: PowerState.CRASHED if vm.config.vm_id in doomed else vm.state)

    @staticmethod
    def _kill(host: Any, vm_id: str, why: str) -> None:
        vm = host.vms[vm_id]
        host.power_off(vm)
        host.change(vm, PowerState.CRASHED, EventKind.CRASHED, why)

    def _change_landed(self, state_of: Callable[[mock_store.MockVm], PowerState]) -> None:
        """Change guests that were handed over to this host, and that its daemon has not seen yet."""
        for path in self._landed():
            vm = mock_store.decode(mock_store.MockVm, json.loads(path.read_text()))
            if vm.state in IN_MEMORY:
                path.write_text(_json(replace(vm, state=state_of(vm))))

    def _change_file(self, state_of: Callable[[mock_store.MockVm], PowerState]) -> None:
        vms = mock_store.load(self._state_path)
        for vm_id, vm in sorted(vms.items()):
            state = state_of(vm) if vm.state in IN_MEMORY else vm.state
            if state is not vm.state:
                vms[vm_id] = replace(vm, state=state, started_at_s=None, running_since_s=None, running=None)
                self._is_now(vm_id, False)
        if vms:
            encoded = [_json(vm) for vm in vms.values()]
            mock_store.save(self._state_path, encoded)
        for vm_id in sorted(self._known - {vm_id for vm_id, vm in vms.items() if vm.state in IN_MEMORY}):
            self._is_now(vm_id, False)


def _json(vm: mock_store.MockVm) -> str:
    return json.dumps(mock_store.encode(vm))
