"""Two hosts in memory that send VMs to each other, between boundaries; what runs on both at once is noted.

A daemon that dies forgets nothing, since it keeps on disk what it knows of migrations; what was asked of it is not
answered, streams break, and what carries the VM over goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from controlplane.daemons.interface import NodeDaemon
from controlplane.domain.node import Node
from limiquantix.errors import DeadlineExceeded, FailedPrecondition, Reason, Unavailable
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from tests.support.failure_harness_faults import Fault, Place, Weather
from tests.support.fake_daemons import RUNNING, FakeDaemon, unreachable
from tests.support.fake_migrations import Network

_TRANSIENT_COUNT = 2
SOURCE, TARGET = "source", "target"


async def _go_on(method: str) -> None:
    """Hold nothing up."""


@dataclass
class MigrationHost(FakeDaemon):
    """A host that tells when a VM changes, and lets others interfere while it carries one over."""

    on_state: Callable[[str], None] = lambda vm_id: None
    on_held: Callable[[str], Awaitable[None]] = _go_on

    def set_state(self, vm_id: str, state: node_v1.PowerState.ValueType) -> None:
        """See `FakeDaemon`, as all below."""
        super().set_state(vm_id, state)
        self.on_state(vm_id)

    async def _held(self, method: str) -> None:
        await super()._held(method)
        await self.on_held(method)


@dataclass
class Connection:
    """How a host can be reached."""

    name: str
    """Of the boundaries."""
    is_away: bool = False
    stays_away: bool = False
    """Whether it is away until everything else is over."""
    deaths: int = 0
    """Of its daemon: a stream that was open then is broken."""


class MigrationHosts:
    """Both hosts as the control plane reaches them; implements `DaemonPool`."""

    def __init__(self, weather: Weather) -> None:
        self.weather = weather
        self.network = Network()
        self.connections: dict[str, Connection] = {}
        self.findings: list[str] = []
        self._hosts: dict[str, MigrationHost] = {}

    def add(self, node: Node, name: str) -> MigrationHost:
        """Let there be the host of a node."""
        host = MigrationHost(
            uri=f"fake://{node.id}",
            network=self.network,
            on_state=self._look,
            on_held=self._carried,
        )
        self.network.by_uri[host.uri] = self._hosts[node.id] = host
        self.connections[node.id] = Connection(name)
        return host

    def daemon(self, node: Node, epoch: int = 0) -> NodeDaemon:
        """See `DaemonPool`."""
        return cast("NodeDaemon", _Calls(self, node.id))

    def of(self, node_id: str) -> MigrationHost:
        """Return the host of the node with that id."""
        return self._hosts[node_id]

    def with_vm(self, vm_id: str) -> list[str]:
        """Ids of the nodes whose hosts have a VM."""
        return [node_id for node_id, host in self._hosts.items() if vm_id in host.vms]

    def come_back(self, *, with_all: bool = False) -> None:
        """Let hosts that are away be there again."""
        for connection in self.connections.values():
            if with_all or not connection.stays_away:
                connection.is_away = connection.stays_away = False

    def leave(self, name: str) -> None:
        """Have a host be away until everything else is over."""
        connection = next(each for each in self.connections.values() if each.name == name)
        connection.is_away = connection.stays_away = True
        connection.deaths += 1

    def _look(self, vm_id: str) -> None:
        """See that a VM does not run twice; every change of a state passes here."""
        running = [each for each in self._hosts.values() if vm_id in each.vms and each.vms[vm_id].state == RUNNING]
        if len(running) > 1:
            self.findings.append("the VM ran on two hosts at once")

    async def _carried(self, method: str) -> None:
        """Let either daemon die while a VM is on its way."""
        for connection in self.connections.values():
            fault = await self.weather.reach(Place.GUEST, f"{method}, {connection.name}")
            if fault is not None:
                self.die(connection, fault)

    @staticmethod
    def die(connection: Connection, fault: Fault) -> None:
        """Have a daemon die: to be back at the next call, or only later."""
        connection.deaths += 1
        connection.is_away = connection.is_away or fault is Fault.DAEMON_GONE


class _Calls:
    """A host's daemon as the control plane calls it; has every method of `NodeDaemon`."""

    def __init__(self, hosts: MigrationHosts, node_id: str) -> None:
        self.hosts, self.host, self.connection = hosts, hosts.of(node_id), hosts.connections[node_id]

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        act = getattr(self.host, method)
        return lambda *values, **named: self._call(method, partial(act, *values, **named))

    async def migrate_vm(self, request: node_v1.MigrateVMRequest) -> AsyncGenerator[node_v1.MigrationProgress, None]:
        """See `NodeDaemon`. The first message is a boundary, and the end."""
        send = partial(self.host.migrate_vm, request)

        async def open_only() -> None:
            async with aclosing(send()) as stream:
                await anext(stream)

        await self._before("migrate_vm", open_only)
        deaths, is_first = self.connection.deaths, True
        async with aclosing(send()) as stream:
            async for told in stream:
                if self.connection.deaths != deaths:
                    raise self._unreachable()
                if is_first:
                    await self._after("migrate_vm, first word")
                    is_first = False
                yield told
        if self.connection.deaths != deaths:
            raise self._unreachable()
        await self._after("migrate_vm, end")

    async def _call(self, method: str, act: Callable[[], Awaitable[Any]]) -> Any:
        await self._before(method, act)
        deaths = self.connection.deaths
        answer = await act()
        if self.connection.deaths != deaths:
            raise self._unreachable()
        await self._after(method)
        return answer

    async def _before(self, method: str, act: Callable[[], Awaitable[Any]]) -> None:
        weather = self.hosts.weather
        match await weather.reach(Place.BEFORE_CALL, f"{self.connection.name} {method}"):
            case Fault.FAIL:
                raise FailedPrecondition(Reason.HYPERVISOR_REFUSED, "simulated refusal")
            case Fault.FAIL_TRANSIENT:
                weather.daemon_silences = _TRANSIENT_COUNT
            case Fault.TWICE:
                self._require_answer()
                await act()
            case Fault.LATE_COMMAND:
                weather.late.append(act)
                raise self._unreachable()
            case Fault.KILLED_AND_LATE:
                weather.late.append(act)
                weather.plane_is_doomed.set()
                await asyncio.get_running_loop().create_future()  # until the kill
            case Fault.KILL_DAEMON | Fault.DAEMON_GONE as fault:
                self.hosts.die(self.connection, fault)
                raise self._unreachable()
        self._require_answer()

    async def _after(self, method: str) -> None:
        match await self.hosts.weather.reach(Place.AFTER_CALL, f"{self.connection.name} {method}"):
            case Fault.KILL_DAEMON | Fault.DAEMON_GONE as fault:
                self.hosts.die(self.connection, fault)
                raise self._unreachable()
            case Fault.LOSE_ANSWER:
                raise self._unreachable()
            case Fault.ANSWER_TOO_LATE:
                raise DeadlineExceeded(Reason.DEADLINE_EXCEEDED, "simulated loss of patience")

    def _require_answer(self) -> None:
        weather = self.hosts.weather
        if weather.daemon_silences:
            weather.daemon_silences -= 1
            raise self._unreachable()
        if self.connection.is_away:
            raise self._unreachable()

    def _unreachable(self) -> Unavailable:
        return unreachable(f"the {self.connection.name}")
