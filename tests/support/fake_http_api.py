"""A control plane in a dictionary: answers the command's requests without a network, and remembers them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import httpx
from click.testing import Result

from limiquantix.errors import ApiError
from limiquantix.rpc.status import to_status

Document = dict[str, Any]
Answer = Callable[[Document], Document]
Run = Callable[..., Result]
"""Runs the command with arguments, see the fixture `run`."""


class FakeApi:
    """Answers by method name; an answer that raises `ApiError` is a refusal, one that raises `httpx` is no answer."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, Document]] = []
        self.ignored_fields = ""

    def handle(self, request: httpx.Request) -> httpx.Response:
        method = request.url.path.rpartition("/")[2]
        document = json.loads(request.content or b"{}")
        self.requests.append((method, document))
        if method not in self.answers:
            return httpx.Response(404)
        try:
            answer = self.answers[method](document)
        except ApiError as error:
            return httpx.Response(400, json=_connect_error(error))
        headers = {"limiquantix-ignored-fields": self.ignored_fields} if self.ignored_fields else {}
        return httpx.Response(200, json=answer, headers=headers)

    def request(self, method: str) -> Document:
        """Return the only request of a method."""
        (found,) = [document for name, document in self.requests if name == method]
        return found

    def have_vms(self, *vms: Document) -> None:
        """Hold these VMs, in pages of two."""

        def list_vms(request: Document) -> Document:
            begin = int(request.get("pageToken") or 0)
            end = begin + 2
            return {
                "vms": list(vms[begin:end]),
                "nextPageToken": str(end) if end < len(vms) else "",
                "totalCount": len(vms),
            }

        self.answers["ListVMs"] = list_vms
        self.answers["GetVM"] = lambda request: next(vm for vm in vms if vm["id"] == request["id"])
        self.answers["GetNode"] = lambda request: node("host-1", id=request["id"])
        self.answers["ListNodes"] = lambda _: {"nodes": [node("host-1")]}


def _connect_error(error: ApiError) -> Document:
    return {
        "code": error.code.name.lower(),
        "message": error.message,
        "details": [
            {
                "type": packed.type_url.rpartition("/")[2],
                "value": base64.b64encode(packed.value).decode().rstrip("="),
            }
            for packed in to_status(error).details
        ],
    }


def uuid_of(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


NODE_ID = uuid_of(900)
PROJECT_ID = uuid_of(1)


def vm(name: str, number: int = 10, *, state: str = "STOPPED", **fields: Any) -> Document:
    """A VM as the API writes it."""
    return {
        "id": uuid_of(number),
        "name": name,
        "projectId": PROJECT_ID,
        "spec": {"cpu": {"cores": 2}, "memory": {"sizeMib": "2048"}},
        "status": {"state": state, "nodeId": NODE_ID},
        "createdAt": "2024-01-01T00:00:00.123456789Z",
    } | fields


def node(hostname: str, **fields: Any) -> Document:
    """A node as the API writes it."""
    return {
        "id": NODE_ID,
        "hostname": hostname,
        "status": {
            "phase": "READY",
            "resources": {
                "cpu": {"allocatedVcpus": 3, "allocatableVcpus": 30},
                "memory": {"allocatedBytes": str(3 * 2**30), "allocatableBytes": str(2**36)},
            },
            "system": {"hypervisor": "mock", "hypervisorVersion": "1"},
        },
    } | fields
