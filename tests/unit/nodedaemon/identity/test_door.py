"""Who may command a host: the names that TLS vouches for, and for how long."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

import pytest

from controlplane.authority.certificates import LEAF_LIFETIME, Authority
from limiquantix.errors import PermissionDenied, Reason
from limiquantix.rpc.identity import CERTIFICATE_KEY, NAMES_KEY, MachineIdentity, Role
from nodedaemon.identity.door import ControlPlanesOnly
from tests.support.builders import make_id

START = datetime(2026, 1, 1, tzinfo=UTC)
OURS = MachineIdentity(make_id(), Role.CONTROL_PLANE, "cp-1")
AUTHORITY, _ = Authority.make(OURS.cluster_id, START)
METHOD = "/limiquantix.node.v1.NodeDaemonService/StartVM"


class Origin:
    """A call over TLS by a machine; None for one without a certificate."""

    def __init__(self, machine: MachineIdentity | None) -> None:
        self._machine = machine

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        return ()

    def peer(self) -> str:
        return "ipv4:192.0.2.7:1"

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        if self._machine is None:
            return {}
        names = [self._machine.uri.encode(), self._machine.server_name.encode()]
        return {NAMES_KEY: names, CERTIFICATE_KEY: [AUTHORITY.issue(self._machine, START).certificate_pem]}


@pytest.mark.parametrize(
    "machine",
    [
        None,
        MachineIdentity(OURS.cluster_id, Role.NODE, make_id()),
        MachineIdentity(make_id(), Role.CONTROL_PLANE, "cp-1"),
    ],
)
async def test_nobody_but_control_planes_of_the_cluster_is_let_in(machine: MachineIdentity | None) -> None:
    with pytest.raises(PermissionDenied) as refused:
        await ControlPlanesOnly(OURS.cluster_id, lambda: START).admit(METHOD, Origin(machine))
    assert refused.value.reason == Reason.CALLER_UNSUITED


async def test_control_plane_is_let_in_until_its_certificate_ends() -> None:
    now = START
    door = ControlPlanesOnly(OURS.cluster_id, lambda: now)
    await door.admit(METHOD, Origin(OURS))
    now += LEAF_LIFETIME - timedelta(seconds=1)
    await door.admit(METHOD, Origin(OURS))
    now += timedelta(seconds=1)
    with pytest.raises(PermissionDenied) as refused:
        await door.admit(METHOD, Origin(OURS))
    assert refused.value.reason == Reason.CERTIFICATE_REFUSED
