"""The table of methods says something of every method of the contract, and of no other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FileDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from controlplane.access.methods import BESIDE_THE_CONTRACT, METHODS, METRICS, Audience, Target
from controlplane.domain.access import Permission
from tests.support.access_scene import BY_NAME


def test_table_has_every_method_and_no_other() -> None:
    assert set(METHODS) == set(BY_NAME)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_needs_name_fields_of_the_request(name: str) -> None:
    fields = BY_NAME[name].input_type.fields_by_name
    for need in METHODS[name].needs:
        if need.target in (Target.PLACE, Target.NEW_VM):
            assert {"project_id", "folder_id"} <= set(fields)
        paths = [path for path in (need.only_if, need.unless) if path]
        if need.target is Target.RULED_VMS:
            paths.append(f"{need.field}.placement")
        elif need.target is Target.CANDIDATES:
            paths.append(f"{need.field}.project_id")
        elif need.target not in (Target.CLUSTER, Target.PLACE):
            assert need.field in fields
        for path in paths:
            *parents, last = path.split(".")
            message = BY_NAME[name].input_type
            for parent in parents:
                inner = message.fields_by_name[parent].message_type
                assert inner is not None
                message = inner
            assert last in message.fields_by_name


def test_every_spec_that_a_request_may_hold_is_asked_for_the_vms_that_its_rules_name() -> None:
    """Else where those are could be learned by rules about them."""
    holding = {(name, path) for name in METHODS for path in specs_in(BY_NAME[name].input_type)}
    asked = {(name, need.field) for name in METHODS for need in METHODS[name].needs if need.target is Target.RULED_VMS}

    assert asked == holding
    assert {name.rpartition("/")[2] for name, _ in asked} == {
        *("CreateVM", "UpdateVM", "ExplainPlacement", "PlanPlacements", "GetCapacity"),
    }


def specs_in(message: Descriptor) -> Iterator[str]:
    """Paths of all specs of VMs in a message."""
    for field in message.fields:
        if field.message_type is None:
            continue
        if field.message_type.full_name == "limiquantix.compute.v1.VmSpec":
            yield field.name
        elif field.message_type.full_name.startswith("limiquantix."):
            yield from (f"{field.name}.{path}" for path in specs_in(field.message_type))


@pytest.mark.parametrize("file", [health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR], ids=["health", "reflection"])
def test_what_servers_offer_beside_the_contract_has_rules(file: FileDescriptor) -> None:
    for service in file.services_by_name.values():
        for method in service.methods:
            assert f"/{service.full_name}/{method.name}" in BESIDE_THE_CONTRACT


def test_little_beside_the_contract_is_for_anybody() -> None:
    public = {name for name, rule in BESIDE_THE_CONTRACT.items() if rule.audience is Audience.ANYBODY}

    assert public == {"/grpc.health.v1.Health/Check"}
    assert [need.permission for need in BESIDE_THE_CONTRACT[METRICS].needs] == [Permission.NODE_READ]


def test_hosts_have_their_own_methods_and_need_no_permission() -> None:
    of_hosts = {name for name, rule in METHODS.items() if rule.audience is Audience.HOSTS}

    assert {name.rpartition("/")[2] for name in of_hosts} == {
        *("RegisterNode", "UpdateHeartbeat", "AnnounceShutdown", "SyncNodeVMs", "SyncFullState"),
        *("NotifyVMChange", "NotifyStorageChange", "RenewCertificate", "IssueMigrationCertificate"),
    }
    assert not any(METHODS[name].needs for name in of_hosts)


def test_few_methods_are_for_anybody() -> None:
    """Each of them proves itself what its request holds; whoever adds one should have to come by here."""
    assert {name.rpartition("/")[2] for name, rule in METHODS.items() if rule.audience is Audience.ANYBODY} == {
        *("Login", "Refresh", "ExchangeToken", "ListIssuers", "JoinNode"),
    }


def test_every_change_is_on_record() -> None:
    unrecorded = {name for name, rule in METHODS.items() if not rule.is_audited and rule.audience is Audience.PEOPLE}
    prefixes = ("Get", "List", "Watch", "Stream", "Wait", "Ping", "WhoAmI", "Explain", "Plan", "Verify")

    assert all(name.rpartition("/")[2].startswith(prefixes) for name in unrecorded)


def test_every_permission_is_needed_somewhere() -> None:
    needed = {need.permission for rule in METHODS.values() for need in rule.needs}
    # Asked by services, which filter what they show by it.
    needed |= {Permission.ROLE_READ}

    assert needed == set(Permission)
