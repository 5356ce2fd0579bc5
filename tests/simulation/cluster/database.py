"""The database, with transactions at one moment each whose answers may be lost; and the coordination service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

from controlplane.coordination.interface import CoordinationAway, RevocationMark
from controlplane.domain.fencing import Counters, Fence, FenceState, HaSettings, Leadership, Marks, NodeGuard
from controlplane.domain.ha_errors import stale_epoch
from controlplane.domain.node import Phase
from controlplane.state.threads import drive
from limiquantix.compute.v1.ha_service_pb2 import FENCE_METHOD_OPERATOR
from limiquantix.errors import Aborted, ApiError, Reason, Unavailable
from tests.simulation.cluster.kernel import Kernel, Network, Process, Violation
from tests.simulation.cluster.rules import Rules

ResultT = TypeVar("ResultT")

CALL_LIMIT_S = 3.0
SESSION_S = 5.0


@dataclass(frozen=True, slots=True)
class NodeRow:
    """What high availability reads of a node."""

    id: str
    hostname: str
    phase: int = Phase.READY
    fence_token: int = 0
    error_message: str = ""
    updated_at: datetime | None = None
    last_heartbeat_at: datetime | None = None
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VmRow:
    """A VM. `generation` counts up with every wish and every move: hosts refuse commands of older ones."""

    id: str
    node_id: str
    memory: int
    is_protected: bool = False
    wants_protection: bool = True
    shall_run: bool = True
    shall_go: bool = False
    generation: int = 1


@dataclass(frozen=True, slots=True)
class StartRow:
    """The operation on a VM: it is moved, if it is one from a fence, and started; or is stopped where it is.

    `taken_at_s` by the database.
    """

    vm_id: str
    fence_id: str = ""
    stops: bool = False
    target_id: str = ""
    is_moved: bool = False
    taken_by: str = ""
    taken_at_s: float = 0.0

    @property
    def id(self) -> str:
        """Name it in logs."""
        return f"{self.vm_id}/{self.fence_id}"


@dataclass(frozen=True, slots=True)
class MoveRow:
    """A migration, from when its target is claimed until it is known where the VM is. `key` is its generation."""

    vm_id: str
    source_id: str
    target_id: str
    key: int
    taken_at_s: float


@dataclass(slots=True)
class Rows:
    """Everything that is recorded."""

    leadership: Leadership = field(default_factory=lambda: Leadership(0, ""))
    settings: HaSettings = field(default_factory=HaSettings)
    nodes: dict[str, NodeRow] = field(default_factory=dict)
    fences: dict[str, Fence] = field(default_factory=dict)
    guards: dict[str, NodeGuard] = field(default_factory=dict)
    vms: dict[str, VmRow] = field(default_factory=dict)
    starts: dict[str, StartRow] = field(default_factory=dict)
    moves: dict[str, MoveRow] = field(default_factory=dict)
    capacity: dict[str, int] = field(default_factory=dict)
    last_token: int = 0

    def copied(self) -> Rows:
        """Copy it, for the way back."""
        return Rows(
            self.leadership,
            self.settings,
            dict(self.nodes),
            dict(self.fences),
            dict(self.guards),
            dict(self.vms),
            dict(self.starts),
            dict(self.moves),
            self.capacity,
            self.last_token,
        )

    def fence_of(self, node_id: str) -> Fence | None:
        """Return the current fence of a node."""
        return next((fence for fence in self.fences.values() if fence.node_id == node_id and fence.is_current), None)

    def free(self, node_id: str) -> int:
        """Return how much is not claimed on a node."""
        arriving = sum(self.vms[move.vm_id].memory for move in self.moves.values() if move.target_id == node_id)
        return self.capacity[node_id] - arriving - sum(vm.memory for vm in self.vms.values() if vm.node_id == node_id)

    def is_proven_dead(self, node_id: str) -> bool:
        """Whether a node has a proven fence, so that it is given no commands."""
        fence = self.fence_of(node_id)
        return fence is not None and fence.state == FenceState.PROVEN


class Transaction:
    """What the services of high availability call, see `HaTransaction`; and rows for the simulation's own parts."""

    def __init__(self, rows: Rows, rules: Rules) -> None:
        self.rows = rows
        self._rules = rules

    async def leadership(self) -> Leadership:
        return self.rows.leadership

    async def take_leadership(self, leader_id: str, hostname: str, at: datetime) -> Leadership:
        self.rows.leadership = Leadership(self.rows.leadership.epoch + 1, leader_id, hostname, at)
        return self.rows.leadership

    async def require_epoch(self, epoch: int) -> None:
        newest = self.rows.leadership
        if epoch < newest.epoch and self._rules.checks_epoch:
            raise stale_epoch(epoch, newest.epoch, newest.leader_id)

    async def ha_settings(self) -> HaSettings:
        return self.rows.settings

    async def update_ha_settings(self, settings: HaSettings) -> HaSettings:
        if settings.version != self.rows.settings.version:
            raise Aborted(Reason.STALE_GENERATION, "the settings were changed since")
        self.rows.settings = replace(settings, version=settings.version + 1)
        return self.rows.settings

    async def raise_counters(self, known: Counters) -> Counters:
        """Raise nothing: this database never loses anything, so nobody knows of more than it does."""
        rows, tokens = self.rows, await self.marks()
        require(known.epoch <= rows.leadership.epoch, f"epoch {known.epoch} is known, and not recorded")
        require(known.ha_version <= rows.settings.version, f"settings {known.ha_version} are known, and not recorded")
        for node_id, token in known.tokens.items():
            newest = tokens.tokens.get(node_id, 0)
            require(token <= newest, f"token {token} of {node_id} is known, and not recorded")
        return Counters()

    async def open_fence(self, fence: Fence) -> Fence:
        if self.rows.fence_of(fence.node_id) is not None:
            raise Aborted(Reason.FENCE_EXISTS, "the node has a current fence")
        self.rows.last_token += 1
        guard, token = self.rows.guards.get(fence.node_id), self.rows.last_token
        opened = replace(fence, id=f"fence-{token}", token=token, boot_id=guard.boot_id if guard else "")
        self.rows.fences[opened.id] = opened
        if not self._rules.withholds_token:
            self._give_token(opened)
        return opened

    async def get_fence(self, fence_id: str) -> Fence | None:
        return self.rows.fences.get(fence_id)

    async def update_fence(self, fence: Fence) -> Fence:
        before = self.rows.fences[fence.id]
        if before.version != fence.version:
            raise Aborted(Reason.STALE_GENERATION, "the fence was changed since")
        is_word = fence.proof is not None and fence.proof.method == FENCE_METHOD_OPERATOR
        if before.heard_by and fence.state == FenceState.PROVEN and not is_word:
            raise Aborted(Reason.FENCE_OBJECTED, "the node was heard")
        self.rows.fences[fence.id] = replace(fence, version=fence.version + 1)
        if not fence.is_current:
            self._give_token(fence)
        return self.rows.fences[fence.id]

    def _give_token(self, fence: Fence) -> None:
        self.rows.nodes[fence.node_id] = replace(self.rows.nodes[fence.node_id], fence_token=fence.token)

    async def current_fences(self) -> Sequence[Fence]:
        return [fence for fence in self.rows.fences.values() if fence.is_current]

    async def object_to_fences(self, node_ids: Collection[str], heard_by: str) -> Sequence[str]:
        first = []
        for fence in list(self.rows.fences.values()):
            if fence.node_id in node_ids and fence.state == FenceState.OPEN and not fence.heard_by:
                self.rows.fences[fence.id] = replace(fence, heard_by=heard_by, version=fence.version + 1)
                first.append(fence.node_id)
        return first

    async def marks(self) -> Marks:
        rows = self.rows
        revoked = {fence.node_id: fence.token for fence in rows.fences.values() if fence.is_current}
        tokens = {node.id: node.fence_token for node in rows.nodes.values() if node.fence_token}
        return Marks(rows.leadership.epoch, rows.settings, revoked, tokens | revoked)

    async def node_guards(self) -> Sequence[NodeGuard]:
        return list(self.rows.guards.values())

    async def note_guards(self, guards: Sequence[NodeGuard]) -> None:
        for guard in guards:
            known = self.rows.guards.get(guard.node_id)
            newest = known if known is not None and guard.noted_at < known.noted_at else guard
            version = max(guard.ha_version, known.ha_version if known is not None else 0)
            self.rows.guards[guard.node_id] = replace(newest, ha_version=version)

    async def get_node(self, node_id: str) -> NodeRow | None:
        return self.rows.nodes.get(node_id)

    async def update_node(self, node: NodeRow, event: object) -> NodeRow:
        self.rows.nodes[node.id] = node
        return node

    async def log_node_event(self, node: NodeRow, event: object) -> None:
        """Take what is told in the log; nothing here reads it."""

    async def mark_silent_nodes(self, before: datetime, now: datetime) -> Sequence[str]:
        return ()


@dataclass(slots=True)
class Database:
    """One database. `watch` is called with the rows before and after each transaction that changed something."""

    kernel: Kernel
    network: Network
    rules: Rules
    watch: Callable[[Rows, Rows], None]
    rows: Rows = field(default_factory=Rows)
    is_away: bool = False
    slow_s: float = 0.0

    def perform(self, work: Callable[[Any], Awaitable[ResultT]], *, writes: bool) -> ResultT | ApiError:
        """Run a transaction now; its error, if it ends with one, in which case nothing has changed."""
        if self.is_away:
            return Unavailable(Reason.STATE_UNAVAILABLE, "the database does not answer")
        before = self.rows.copied() if writes else self.rows
        try:
            result = drive(work(Transaction(self.rows, self.rules)))
        except ApiError as error:
            self.rows = before
            return error
        if writes:
            self.watch(before, self.rows)
        return result


class Store:
    """One process's way to the database."""

    def __init__(self, database: Database, process: Process) -> None:
        self._database = database
        self._process = process

    async def run(self, work: Callable[[Any], Awaitable[ResultT]]) -> ResultT:
        return await self._call(work, writes=True)

    async def read(self, work: Callable[[Any], Awaitable[ResultT]]) -> ResultT:
        return await self._call(work, writes=False)

    async def _call(self, work: Callable[[Any], Awaitable[ResultT]], *, writes: bool) -> ResultT:
        database, kernel = self._database, self._database.kernel

        def serve(answer: Callable[[Any], None]) -> bool:
            if database.slow_s:
                delay_s = database.slow_s * kernel.random.random()
                kernel.after(delay_s, lambda: answer(database.perform(work, writes=writes)))
                return False
            answer(database.perform(work, writes=writes))
            return True

        asked = database.network.call(self._process, self._process.name, "db", serve, CALL_LIMIT_S)
        result: ResultT = await asked
        return result


@dataclass(slots=True)
class Etcd:
    """The coordination service: who is elected, until when, and marks."""

    kernel: Kernel
    network: Network
    rules: Rules
    is_away: bool = False
    leader: str = ""
    until_s: float = 0.0
    marks: dict[str, int] = field(default_factory=dict)

    def campaign(self, name: str) -> bool:
        """Keep a session alive, or be elected if nobody is."""
        if self.leader and self.leader != name and self.kernel.now_s < self.until_s:
            return False
        if self.leader != name:
            self.kernel.note(f"{name} is elected")
        self.leader, self.until_s = name, self.kernel.now_s + SESSION_S
        return True

    def resign(self, name: str) -> None:
        """End a session."""
        if self.leader == name:
            self.leader = ""


class Coordinator:
    """One process's way to the coordination service, and its part in the election."""

    def __init__(self, etcd: Etcd, process: Process) -> None:
        self._etcd = etcd
        self._process = process
        self._elected_until_s = 0.0
        self._heard_s = -1e9
        self.believes_until_s = 0.0
        """Until when it takes itself to be elected, whatever is true; a fault."""

    @property
    def is_elected(self) -> bool:
        now_s = self._process.clock.now()
        return now_s < self._elected_until_s or self._etcd.kernel.now_s < self.believes_until_s

    @property
    def obstacle(self) -> str:
        return "" if self._process.clock.now() - self._heard_s < SESSION_S else "etcd does not answer"

    async def campaign(self) -> None:
        """Ask to be elected, or to stay so."""
        began_s = self._process.clock.now()
        is_elected = await self._ask(lambda etcd: etcd.campaign(self._process.name))
        self._heard_s = began_s
        self._elected_until_s = began_s + SESSION_S * 0.99 if is_elected else 0.0

    async def publish_revocation(self, mark: RevocationMark) -> None:
        def publish(etcd: Etcd) -> None:
            etcd.marks[mark.node_id] = max(mark.token, etcd.marks.get(mark.node_id, 0))

        if self._etcd.rules.publishes:
            await self._ask(publish)

    async def clear_revocation(self, mark: RevocationMark) -> None:
        def clear(etcd: Etcd) -> None:
            if etcd.marks.get(mark.node_id, mark.token + 1) <= mark.token:
                del etcd.marks[mark.node_id]

        await self._ask(clear)

    async def revocations(self) -> dict[str, int]:
        return await self._ask(lambda etcd: dict(etcd.marks))

    async def _ask(self, work: Callable[[Etcd], ResultT]) -> ResultT:
        etcd = self._etcd

        def serve(answer: Callable[[Any], None]) -> bool:
            answer(CoordinationAway("no endpoint answers") if etcd.is_away else work(etcd))
            return True

        try:
            asked = etcd.network.call(self._process, self._process.name, "etcd", serve, CALL_LIMIT_S)
            result: ResultT = await asked
        except Unavailable as error:
            raise CoordinationAway("no endpoint answers") from error
        return result


def require(condition: bool, what: str) -> None:
    """Raise `Violation` unless the condition holds."""
    if not condition:
        raise Violation(what)
