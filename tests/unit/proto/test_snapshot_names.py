"""Names of snapshots are for people to read in a list: nothing in them may hide, break a line or pass for a path."""

from __future__ import annotations

import uuid

import pytest

from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.node.v1 import node_daemon_pb2 as node
from limiquantix.rpc.validation import violations_of

BAD = [
    *("", " ", "x" * 256, "a\nb", "a\r", "a\0b", "\x1b[31m", "\x7f", "a\u2028b", "\u202etxt", "a\u200bb", "\ufeffa"),
    *(" a", "a ", "\u00a0a", "a\u00ad", "a\u2066"),
]
GOOD = ["a", "../../etc/passwd", "a'><&\"b", "before upgrade 3.1", "x" * 255, "über", "日本語 の 名前", "%s {0} $(id)"]


@pytest.mark.parametrize("message", [api.CreateSnapshotRequest, node.CreateSnapshotRequest])
@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_name_that_hides_or_breaks_something_is_refused(message: type, name: str) -> None:
    assert "name" in {violation.field for violation in violations_of(_request(message, name))}


@pytest.mark.parametrize("message", [api.CreateSnapshotRequest, node.CreateSnapshotRequest])
@pytest.mark.parametrize("name", GOOD, ids=ascii)
def test_name_that_is_odd_but_plain_is_taken(message: type, name: str) -> None:
    assert violations_of(_request(message, name)) == []


def test_description_takes_lines_and_no_nul() -> None:
    request = api.CreateSnapshotRequest(vm_id=str(uuid.uuid4()), name="a", description="two\nlines")
    assert violations_of(request) == []
    request.description = "a\0"
    assert [violation.field for violation in violations_of(request)] == ["description"]


def test_ids_of_snapshots_are_uuids() -> None:
    for text in ("before", "../x", ""):
        request = api.RevertToSnapshotRequest(vm_id=str(uuid.uuid4()), snapshot_id=text)
        assert [violation.field for violation in violations_of(request)] == ["snapshot_id"]


def _request(message: type, name: str) -> api.CreateSnapshotRequest | node.CreateSnapshotRequest:
    if message is node.CreateSnapshotRequest:
        return node.CreateSnapshotRequest(vm_id=str(uuid.uuid4()), snapshot_id=str(uuid.uuid4()), name=name)
    return api.CreateSnapshotRequest(vm_id=str(uuid.uuid4()), name=name)
