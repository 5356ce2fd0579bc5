"""Names in certificates are read to the letter, or not at all."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiquantix.rpc.identity import (
    NAMES_KEY,
    MachineIdentity,
    Role,
    identity_of,
    identity_of_peer,
    node_server_name,
)

CLUSTER, NODE_ID = str(uuid.UUID(int=7)), str(uuid.UUID(int=9))
NODE = MachineIdentity(CLUSTER, Role.NODE, NODE_ID)


@pytest.mark.parametrize("identity", [NODE, MachineIdentity(CLUSTER, Role.CONTROL_PLANE, "cp-1.example")])
def test_name_that_was_written_is_read(identity: MachineIdentity) -> None:
    assert identity_of(identity.uri) == identity


@pytest.mark.parametrize(
    "uri",
    [
        "",
        NODE.uri + "/",
        NODE.uri + "\n",
        NODE.uri.upper(),
        NODE.uri.replace("limiquantix:", "https:"),
        NODE.uri.replace("node", "admin"),
        NODE.uri.replace("node", "NODE"),
        NODE.uri.replace(CLUSTER, "any"),
        f"limiquantix://{CLUSTER}/node/host-1",
        f"limiquantix://{CLUSTER}/controlplane/",
        f"limiquantix://{CLUSTER}/controlplane/../node",
        f"limiquantix://user@{CLUSTER}/node/{NODE_ID}",
        f"limiquantix://{CLUSTER}/node/{NODE_ID}?x=1",
    ],
)
def test_other_names_are_nobodys(uri: str) -> None:
    assert identity_of(uri) is None


@given(st.text())
def test_what_is_read_was_written_so(text: str) -> None:
    found = identity_of(text)
    assert found is None or found.uri == text


def test_peer_is_who_its_only_uri_says() -> None:
    dns = node_server_name(NODE_ID).encode()
    other = MachineIdentity(CLUSTER, Role.CONTROL_PLANE, "cp-1").uri.encode()
    assert identity_of_peer({NAMES_KEY: [NODE.uri.encode(), dns]}) == NODE
    assert identity_of_peer({NAMES_KEY: [dns]}) is None
    assert identity_of_peer({NAMES_KEY: [NODE.uri.encode(), other]}) is None, "it is one or the other"
    assert identity_of_peer({NAMES_KEY: [b"\xff://x"]}) is None
    assert identity_of_peer({}) is None


def test_nodes_have_a_server_name_each_and_control_planes_share_one() -> None:
    assert NODE.server_name == f"{NODE_ID}.node.limiquantix.internal"
    planes = [MachineIdentity(CLUSTER, Role.CONTROL_PLANE, name) for name in ("cp-1", "cp-2")]
    assert {plane.server_name for plane in planes} == {"controlplane.limiquantix.internal"}
