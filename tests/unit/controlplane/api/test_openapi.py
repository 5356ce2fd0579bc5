"""The OpenAPI document: sound, whole, and true to what the contract's own rules and JSON forms say."""

from __future__ import annotations

import json
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from click.testing import CliRunner
from google.protobuf import json_format
from starlette.applications import Starlette

from controlplane.access.methods import METHODS, Audience
from controlplane.api.http.openapi.contract import contract_document, contract_services
from controlplane.api.http.openapi.document import build_document
from controlplane.api.http.openapi.endpoint import openapi_route
from controlplane.cli.openapi import openapi
from limiquantix.compute.v1 import vm_pb2, vm_service_pb2
from limiquantix.rpc.documentation import comments

COMPUTE = "limiquantix.compute.v1"
VM_ID = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return contract_document()


def _schema(document: dict[str, Any], name: str) -> jsonschema_rs.Validator:
    """A validator of one of the document's types."""
    root = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return jsonschema_rs.Draft202012Validator(root)


def test_document_is_sound_openapi(document: dict[str, Any]) -> None:
    schemathesis.openapi.from_dict(document).validate()


def test_document_every_method_is_there_and_nothing_else_is_posted(document: dict[str, Any]) -> None:
    methods = {f"/{service.full_name}/{method.name}" for service in contract_services() for method in service.methods}
    methods -= {path for path, rule in METHODS.items() if rule.audience is Audience.HOSTS}

    assert {path for path, item in document["paths"].items() if "post" in item} == methods
    assert f"/{COMPUTE}.VMService/CreateVM" in methods


def test_document_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(part: Any) -> set[str]:
        if isinstance(part, list):
            return set().union(*map(references, part))
        if not isinstance(part, dict):
            return set()
        own = {part["$ref"]} if "$ref" in part else set()
        return own.union(*map(references, part.values()))

    for reference in references(document):
        target: Any = document
        for step in reference.removeprefix("#/").split("/"):
            assert step in target, reference
            target = target[step]


def test_document_every_method_and_service_is_described(document: dict[str, Any]) -> None:
    undescribed = [
        path for path, item in document["paths"].items() if "post" in item and "description" not in item["post"]
    ]
    undescribed += [tag["name"] for tag in document["tags"] if "description" not in tag]

    assert undescribed == []


def test_document_operation_ids_are_unique(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]

    assert len(ids) == len(set(ids))


def test_document_asks_for_a_credential_but_where_it_is_told_not_to() -> None:
    get, watch = f"/{COMPUTE}.VMService/GetVM", f"/{COMPUTE}.VMService/WatchVM"
    made = build_document(contract_services(), "1", {}, public=[get], absent=[watch])

    assert made["security"] == [{"bearer": []}]
    assert made["paths"][get]["post"]["security"] == []
    assert "security" not in made["paths"][f"/{COMPUTE}.VMService/ListVMs"]["post"]
    assert watch not in made["paths"]


def test_document_says_of_each_method_what_its_callers_need(document: dict[str, Any]) -> None:
    said = {
        path.removeprefix(f"/{COMPUTE}."): item["post"].get("security", document["security"])
        for path, item in document["paths"].items()
        if "post" in item
    }

    assert {path for path, security in said.items() if not security} == {
        *("AuthService/Login", "AuthService/Refresh", "AuthService/ExchangeToken", "AuthService/ListIssuers"),
        "JoinService/JoinNode",
    }
    assert said["VMService/GetVM"] == [{"bearer": ["vm.read"]}]
    assert said["VMService/RevertToSnapshot"] == [{"bearer": ["vm.power", "vm.snapshot"]}]
    assert said["VMService/ListVMs"] == [{"bearer": []}], "which shows what the caller may see"
    assert said["FolderService/CreateFolder"] == [{"bearer": []}], "whose needs depend on what it says"
    assert "NodeService/UpdateHeartbeat" not in said


def test_document_asks_strangers_for_a_credential_before_metrics_only(document: dict[str, Any]) -> None:
    plain = {path: item["get"]["security"] for path, item in document["paths"].items() if "get" in item}

    assert plain.pop("/metrics") == [{}, {"bearer": []}]
    assert plain
    assert not any(plain.values())


@pytest.mark.parametrize(
    ("changes", "is_sound"),
    [
        ({}, True),
        ({"name": ""}, False),
        ({"name": "x" * 256}, False),
        ({"projectId": ""}, True),
        ({"projectId": "no-uuid"}, False),
        ({"labels": {"tier": "web"}}, True),
        ({"labels": {"-": "web"}}, False),
        ({"labels": {str(number): "x" for number in range(65)}}, False),
        ({"labels": {"tier": "\n"}}, False),
        ({"spec": {"disks": [{"sizeGib": "20", "bus": "VIRTIO_BLK"}]}}, True),
        ({"spec": {"disks": [{"sizeGib": 20}]}}, True),
        ({"spec": {"disks": [{"bus": "NO_SUCH_BUS"}]}}, False),
        ({"startOnCreate": "yes"}, False),
    ],
)
def test_schema_of_a_request_takes_and_refuses_what_validation_does(
    document: dict[str, Any], changes: dict[str, Any], is_sound: bool
) -> None:
    body = {"name": "web-1", "spec": {"cpu": {"cores": 1}, "memory": {"sizeMib": "128"}}, **changes}

    assert _schema(document, f"{COMPUTE}.CreateVMRequest").is_valid(body) is is_sound


def test_schema_requires_what_an_empty_message_lacks(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    assert schemas[f"{COMPUTE}.GetVMRequest"]["required"] == ["id"]
    assert "required" not in schemas[f"{COMPUTE}.ListVMsRequest"]
    assert schemas[f"{COMPUTE}.CreateVMRequest"]["required"] == ["name", "spec"]


def test_schema_of_an_answer_takes_what_is_written(document: dict[str, Any]) -> None:
    vm = vm_pb2.VirtualMachine(id=VM_ID, name="web-1", labels={"tier": "web"})
    vm.spec.disks.add(size_gib=20, bus=vm_pb2.DiskDevice.BusType.Value("VIRTIO_BLK"))
    vm.created_at.GetCurrentTime()
    answer = vm_service_pb2.ListVMsResponse(vms=[vm], total_count=1)

    _schema(document, f"{COMPUTE}.ListVMsResponse").validate(json.loads(json_format.MessageToJson(answer)))


def test_schema_of_a_choice_takes_one_of_its_fields_only(document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"][f"{COMPUTE}.ExplainPlacementRequest"]
    (choice,) = schema["allOf"]
    names = [alternative["required"][0] for alternative in choice["oneOf"] if "required" in alternative]
    validator = jsonschema_rs.Draft202012Validator(choice)

    assert validator.is_valid({names[0]: {}})
    assert not validator.is_valid({name: {} for name in names})


def test_comments_are_those_of_the_contract() -> None:
    assert "Unique within the project" in comments()[f"{COMPUTE}.CreateVMRequest.name"]
    assert comments()[f"{COMPUTE}.VMService.CreateVM"].startswith("Place a VM on a node")


async def test_endpoint_serves_the_document_once_made_and_answers_whoever_has_it() -> None:
    calls = []

    def build() -> dict[str, Any]:
        calls.append(1)
        return {"openapi": "3.1.0"}

    transport = httpx.ASGITransport(Starlette(routes=[openapi_route(build)]))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        first = await client.get("/openapi.json")
        second = await client.get("/openapi.json", headers={"if-none-match": first.headers["etag"]})

    assert first.json() == {"openapi": "3.1.0"}
    assert first.headers["content-type"] == "application/json"
    assert (second.status_code, second.content) == (304, b"")
    assert calls == [1]


def test_command_prints_the_same_document(document: dict[str, Any]) -> None:
    done = CliRunner().invoke(openapi)

    assert done.exit_code == 0
    assert json.loads(done.output) == document
