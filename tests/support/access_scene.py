"""A tree with people in it, and the gate before it: what tests of access begin with."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

import limiquantix.compute.v1
from controlplane.access.authorizer import Authorizer
from controlplane.access.calling import calling
from controlplane.access.guard import Guard
from controlplane.access.limits import CallLimits
from controlplane.access.memory import AccessMemory
from controlplane.domain.access import Binding, Place
from controlplane.domain.folder import Folder
from controlplane.domain.principal import Principal, PrincipalKind, Scope
from controlplane.domain.project import Project
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import Reason, Unauthenticated
from limiquantix.rpc.pipeline import CallOrigin
from tests.support.builders import START_OF_TIME, make_id

METHOD = "/limiquantix.compute.v1."


def _methods() -> Iterator[MethodDescriptor]:
    for path in sorted(Path(next(iter(limiquantix.compute.v1.__path__))).glob("*_service_pb2.py")):
        module = importlib.import_module(f"limiquantix.compute.v1.{path.stem}")
        for service in module.DESCRIPTOR.services_by_name.values():
            yield from service.methods


BY_NAME = {f"/{method.containing_service.full_name}/{method.name}": method for method in _methods()}
"""Every method of the contract, by "/package.Service/Method"."""


def user(name: str, *groups: str) -> Principal:
    """A user whose id is made of the name."""
    return Principal(PrincipalKind.USER, f"id-of-{name}", name, frozenset(groups))


def api_key_of(name: str, scope: Scope | None = None) -> Principal:
    """An API key of a user."""
    return Principal(PrincipalKind.API_KEY, f"key-of-{name}", "ci", scope=scope, owner_id=f"id-of-{name}")


def node(node_id: str) -> Principal:
    """A host with its certificate."""
    return Principal(PrincipalKind.NODE, node_id, "host-1")


def bound(who: str, role_id: str, place: Place | None = None) -> Binding:
    """A role of "user:alice" or "group:ops", by default at the cluster."""
    subject = f"user:id-of-{who.removeprefix('user:')}" if who.startswith("user:") else who
    return Binding(make_id(), subject, who, role_id, place or Place(), START_OF_TIME)


async def write(store: Store, *records: Project | Folder | Binding) -> None:
    """Put projects, folders and bindings into the database, as services do."""

    async def work(tx: Transaction) -> None:
        await tx.begin_access_change()
        for record in records:
            if isinstance(record, Project):
                await tx.insert_project(record)
            elif isinstance(record, Folder):
                await tx.insert_folder(record)
            else:
                await tx.insert_binding(record)

    await store.run(work)


@contextmanager
def called_by(principal: Principal) -> Iterator[None]:
    """Let what is inside run as within a call."""
    token = calling.set(principal)
    try:
        yield
    finally:
        calling.reset(token)


@dataclass
class FakeOrigin:
    """Where a call comes from."""

    metadata: Sequence[tuple[str, str]] = ()
    address: str = "ipv4:192.0.2.7:51234"

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """See `CallOrigin`."""
        return self.metadata

    def peer(self) -> str:
        """See `CallOrigin`."""
        return self.address

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """See `CallOrigin`."""
        return {}


@dataclass
class NamedPrincipals:
    """An authenticator that believes the header `as`; one that names nobody known is refused."""

    known: Mapping[str, Principal]

    async def authenticate(self, origin: CallOrigin) -> Principal | None:
        """See `Authenticator`."""
        for key, value in origin.invocation_metadata() or ():
            if key == "as":
                if str(value) not in self.known:
                    raise Unauthenticated(Reason.NOT_LOGGED_IN, "this is nobody")
                return self.known[str(value)]
        return None


@dataclass
class FakeTrail:
    """A record in memory."""

    begun: list[tuple[str, str, str]] = field(default_factory=list)
    """Who, method and resource."""
    ended: list[tuple[str, int]] = field(default_factory=list)
    """Record and code."""
    refusals: list[tuple[str, str, int]] = field(default_factory=list)
    """Who, method and code."""
    refused_about: list[str] = field(default_factory=list)

    async def begin(
        self, principal: Principal | None, method: str, request: Message, resource: str, origin: CallOrigin
    ) -> str:
        """See `AuditTrail`."""
        self.begun.append(("" if principal is None else principal.text, method, resource))
        return f"record-{len(self.begun)}"

    async def end(self, record_id: str, code: int, message: str) -> None:
        """See `AuditTrail`."""
        self.ended.append((record_id, code))

    async def refused(
        self,
        principal: Principal | None,
        method: str,
        request: Message | None,
        resource: str,
        origin: CallOrigin,
        code: int,
        message: str,
    ) -> None:
        """See `AuditTrail`."""
        self.refused_about.append(resource)
        self.refusals.append(("" if principal is None else principal.text, method, code))


@dataclass
class AnyBody:
    """Lets every host say everything, and notes what it was asked."""

    asked: list[str] = field(default_factory=list)

    async def require_own(self, principal: Principal, method: str, request: Message) -> None:
        """See `OwnBodies`."""
        self.asked.append(method)


@dataclass
class ClosedToAll:
    """A `CallGuard` that lets nobody in, and notes who wanted to."""

    wanted: list[tuple[str, str]] = field(default_factory=list)
    """Method and peer."""

    async def admit(self, method: str, origin: CallOrigin) -> None:
        """See `CallGuard`."""
        self.wanted.append((method, origin.peer()))
        raise Unauthenticated(Reason.NOT_LOGGED_IN, "nobody comes in here")

    def around(self, method: str, request: Message, origin: CallOrigin) -> AbstractAsyncContextManager[None]:
        """See `CallGuard`."""
        return nullcontext()

    async def recheck(self, method: str, request: Message, origin: CallOrigin) -> None:
        """See `CallGuard`."""


@dataclass
class Gate:
    """A guard with parts that can be looked into."""

    guard: Guard
    memory: AccessMemory
    trail: FakeTrail
    bodies: AnyBody


def gate(store: Store, *people: Principal, limits: CallLimits | None = None) -> Gate:
    """Build a guard that knows these people by their names."""
    memory, trail, bodies = AccessMemory(store), FakeTrail(), AnyBody()
    known = NamedPrincipals({each.name: each for each in people})
    guard = Guard(known, Authorizer(memory, store), trail, limits or CallLimits(), bodies)
    return Gate(guard, memory, trail, bodies)


def said_by(principal: Principal) -> FakeOrigin:
    """The origin of a call of somebody."""
    return FakeOrigin((("as", principal.name),))
