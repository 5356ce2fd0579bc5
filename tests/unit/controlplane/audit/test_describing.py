"""What a call is written down as."""

from __future__ import annotations

import json

from controlplane.audit.describing import MAX_REQUEST_CHARS, entry_of, request_json
from controlplane.domain.principal import Principal, PrincipalKind
from limiquantix.compute.v1 import ha_service_pb2, vm_service_pb2
from tests.support.builders import START_OF_TIME
from tests.support.call_origins import FakeOrigin

ANN = Principal(PrincipalKind.USER, "u1", "ann")
CANARY = "canary-4711"


def test_entry_says_who_what_on_what_why_and_from_where() -> None:
    request = vm_service_pb2.CreateVMRequest(name="web", project_id="p1")
    origin = FakeOrigin(
        (("limiquantix-request-id", "r1"), ("limiquantix-reason", b"ticket 7"), ("authorization", CANARY))
    )
    entry = entry_of(ANN, "/s/CreateVM", request, "vm/v1,node/n1", origin, START_OF_TIME)
    assert (entry.principal_kind, entry.principal_id, entry.principal_name) == ("user", "u1", "ann")
    assert (entry.method, entry.resources, entry.project_id) == ("/s/CreateVM", ("vm/v1", "node/n1"), "p1")
    assert (entry.request_id, entry.reason, entry.address) == ("r1", "ticket 7", "192.0.2.7")
    assert json.loads(entry.request_json) == {"name": "web", "projectId": "p1"}
    assert CANARY not in repr(entry)


def test_reason_of_the_request_counts_where_metadata_has_none_and_cannot_pose_as_a_line() -> None:
    request = ha_service_pb2.DisarmHaRequest(reason="rack 4\nalice did it")
    assert entry_of(ANN, "/s/M", request, "", FakeOrigin(), START_OF_TIME).reason == "rack 4 alice did it"


def test_call_of_nobody_known_is_described() -> None:
    entry = entry_of(None, "/s/M", None, "", FakeOrigin(address="unix:"), START_OF_TIME)
    assert (entry.principal_kind, entry.address, entry.request_json, entry.resources) == ("", "unix", "", ())


def test_secret_fields_are_left_out_wherever_they_are() -> None:
    create = vm_service_pb2.CreateVMRequest(name="web")
    create.spec.display.password = CANARY
    create.spec.provisioning.cloud_init.user_data = CANARY
    script = vm_service_pb2.ExecuteScriptRequest(
        command="/bin/sh", args=[CANARY], environment={"A": CANARY}, input=CANARY.encode()
    )
    password = vm_service_pb2.SetGuestPasswordRequest(user="root", password=CANARY)
    for request in (create, script, password):
        assert CANARY not in request_json(request)
    assert json.loads(request_json(password)) == {"user": "root", "password": "[secret]"}
    assert create.spec.display.password == CANARY, "the request itself stays as it is"


def test_long_request_is_shortened_where_it_is_longest() -> None:
    request = vm_service_pb2.CreateVMRequest(name="web", description="x" * 20_000, labels={"a": "y" * 10_000})
    text = request_json(request)
    assert len(text) <= MAX_REQUEST_CHARS
    assert json.loads(text) == {
        "name": "web",
        "description": "[20002 characters left out]",
        "labels": {"a": "y" * 10_000},
    }
