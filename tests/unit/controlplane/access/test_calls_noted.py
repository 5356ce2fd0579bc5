"""Which calls explain what comes over a connection: the guard says so to the watch over floods."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from controlplane.access.authorizer import Authorizer
from controlplane.access.guard import Guard
from controlplane.access.limits import CallLimits, CallRates, Rate
from controlplane.access.memory import AccessMemory
from controlplane.domain.principal import Principal
from limiquantix.errors import Reason, ResourceExhausted, Unauthenticated, Unavailable
from limiquantix.rpc.pipeline import CallOrigin
from tests.support.access_scene import METHOD, AnyBody, FakeOrigin, FakeTrail, NamedPrincipals, said_by, user
from tests.support.control_plane_world import World

ADA = user("ada")


@dataclass
class _Noted:
    """What is told of calls to whom watches over floods."""

    known: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    def known_called(self, peer: str) -> None:
        """See `CallsNoted`."""
        self.known.append(peer)

    def stranger_called(self, peer: str) -> None:
        """See `CallsNoted`."""
        self.strangers.append(peer)


class _Away:
    """An authenticator whose database does not answer."""

    async def authenticate(self, origin: CallOrigin) -> Principal | None:
        """See `Authenticator`."""
        raise Unavailable(Reason.STATE_UNAVAILABLE, "the database does not answer")


async def test_every_call_that_is_not_one_too_many_is_noted(world: World) -> None:
    noted, get = _Noted(), METHOD + "VMService/GetVM"
    limits = CallLimits(CallRates(people=Rate(1, 2), hosts=Rate(1, 2), strangers=Rate(1, 2)))
    authorizer = Authorizer(AccessMemory(world.store), world.store)
    guard = Guard(NamedPrincipals({ADA.name: ADA}), authorizer, FakeTrail(), limits, AnyBody(), noted)
    peer = FakeOrigin().peer()

    for _ in range(2):
        await guard.admit(get, said_by(ADA))
    with pytest.raises(ResourceExhausted):
        await guard.admit(get, said_by(ADA))
    assert (noted.known, noted.strangers) == ([peer] * 2, [])

    with pytest.raises(Unauthenticated):
        await guard.admit(get, FakeOrigin())
    await guard.admit(METHOD + "AuthService/Login", FakeOrigin())
    with pytest.raises(ResourceExhausted):
        await guard.admit(get, FakeOrigin())
    assert (noted.known, noted.strangers) == ([peer] * 2, [peer] * 2)


async def test_calls_while_nobody_can_be_known_are_no_flood(world: World) -> None:
    noted = _Noted()
    authorizer = Authorizer(AccessMemory(world.store), world.store)
    guard = Guard(_Away(), authorizer, FakeTrail(), CallLimits(), AnyBody(), noted)
    for _ in range(100):
        with pytest.raises(Unavailable):
            await guard.admit(METHOD + "VMService/GetVM", FakeOrigin())
    assert len(noted.strangers) == 100
