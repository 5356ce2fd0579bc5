"""Every method of the API called with what schemathesis makes of the OpenAPI document: no 5xx, no hang, no inner text.

Each method gets a few bodies that fit the document and a few that do not. `LIMIQUANTIX_FUZZ_S` has them made for that
many seconds in all, with new ones at every run; `make fuzz` does, and prints what was sent. All is called by an
administrator, since what is refused to others does not reach the services.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from controlplane.api.http.openapi.contract import contract_document
from tests.support.closed_cluster import ADMINISTRATOR, PASSWORD, ClosedCluster, closed_cluster
from tests.support.http_fuzzing import Judge, with_known_ids
from tests.support.running_control_plane import sound_body
from tests.support.threaded_control_plane import in_a_thread

SECONDS = float(os.environ.get("LIMIQUANTIX_FUZZ_S", "0"))
EXAMPLES = 1
DOCUMENT = contract_document()
METHODS = sorted(path for path, item in DOCUMENT["paths"].items() if "post" in item)
FINISHED_S = 60.0
PACKAGE = "limiquantix.compute.v1"
ResultT = TypeVar("ResultT")

pytestmark = pytest.mark.timeout(SECONDS + 300)


@dataclass
class Target:
    """A closed control plane with a few of all things, called by its administrator."""

    cluster: ClosedCluster
    client: httpx.Client
    judge: Judge
    loop: asyncio.AbstractEventLoop
    host_count: int = 0

    def done(self, method: str, body: dict[str, Any]) -> Any:
        """Call a method; None if it fails."""
        answer = self.client.post(f"/{PACKAGE}.{method}", json=body)
        return answer.json() if answer.status_code == HTTPStatus.OK else None

    def log_in(self) -> None:
        """Call as the administrator, also when calls have ended the session."""
        if self.done("AuthService/WhoAmI", {}) is None:
            token = self._awaited(self.cluster.login(ADMINISTRATOR))
            self.client.headers["authorization"] = f"Bearer {token}"

    def known_ids(self, path: str) -> dict[str, list[str]]:
        """Find things that are there, by the names of fields for them; makes what calls have sent away."""
        projects = self._ids("ProjectService", "projects") or [str(uuid.uuid4())]
        vms, nodes = self._vms(), self._ids("NodeService", "nodes")
        found = {
            "VMService": vms,
            "NodeService": nodes,
            "ProjectService": projects,
            "FolderService": self._ids("FolderService", "folders"),
            "OperationService": self._ids("OperationService", "operations"),
            "RoleService": self._ids("RoleService", "roles"),
            "UserService": self._strangers(),
            "AlertService": self._ids("AlertService", "alerts"),
        }
        vm_fields = dict.fromkeys(("vmId", "sourceVmId", "templateId", "moveVmsTo"), vms)
        node_fields = dict.fromkeys(("nodeId", "targetNodeId", "hostId"), nodes)
        folder_fields = dict.fromkeys(("folderId", "parentId"), found["FolderService"])
        own = found.get(path.rpartition("/")[0].rpartition(".")[2], [])
        return {**vm_fields, **node_fields, **folder_fields, "projectId": projects, "id": own}

    def _ids(self, service: str, kind: str) -> list[str]:
        listed = self.done(f"{service}/List{kind[0].upper()}{kind[1:]}", {"pageSize": 4}) or {}
        return [each["id"] for each in listed.get(kind, [])]

    def _strangers(self) -> list[str]:
        """Users who are not the one that calls."""
        users = (self.done("UserService/ListUsers", {"pageSize": 20}) or {}).get("users", [])
        others = [each["id"] for each in users if each["name"] != ADMINISTRATOR]
        if not others:
            made = self.done("UserService/CreateUser", {"name": f"u{time.monotonic_ns()}", "password": PASSWORD})
            others = [made["id"]]
        return others

    def _vms(self) -> list[str]:
        ids = self._ids("VMService", "vms")
        if len(ids) < 2:
            made = self.done("VMService/CreateVM", sound_body(name=f"fuzzed-{time.monotonic_ns()}"))
            if made is None:  # calls sent the host away
                self.host_count += 1
                self._awaited(self.cluster.add_host(f"host-{self.host_count}"))
                made = self.done("VMService/CreateVM", sound_body(name=f"fuzzed-{time.monotonic_ns()}"))
            ids += [made["id"]] if made is not None else []
        return ids or [str(uuid.uuid4())]

    def _awaited(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(FINISHED_S)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    directory = tmp_path_factory.mktemp("plane")
    with (
        in_a_thread(lambda: closed_cluster(directory)) as (cluster, loop),
        httpx.Client(base_url=str(cluster.http.base_url), verify=cluster.trust, timeout=FINISHED_S) as client,
    ):
        yield Target(cluster, client, Judge(client, DOCUMENT), loop)


@pytest.fixture(scope="module")
def schema() -> Any:
    return schemathesis.openapi.from_dict(DOCUMENT)


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.rpartition(".")[2])
def test_method_answers_whatever_it_is_sent(path: str, target: Target, schema: Any) -> None:
    _send(path, target, schema, EXAMPLES, is_random=False)
    assert target.client.get("/health").status_code == 200


@pytest.mark.skipif(SECONDS == 0, reason="takes minutes; LIMIQUANTIX_FUZZ_S says how many seconds")
def test_methods_answer_for_minutes(target: Target, schema: Any) -> None:
    began_s, round_count = time.monotonic(), 0
    while time.monotonic() - began_s < SECONDS:
        round_count += 1
        for path in METHODS:
            if time.monotonic() - began_s >= SECONDS:
                break
            _send(path, target, schema, 10, is_random=True)
    took_s, tally = time.monotonic() - began_s, target.judge.tally
    print(
        f"\n{tally.call_count} calls of {len(METHODS)} methods in {took_s:.0f} s "
        f"({tally.call_count / took_s:.0f} a second), "
        f"statuses {dict(sorted(tally.statuses.items()))}, slowest {tally.slowest_s:.2f} s ({tally.slowest_path})"
    )
    assert target.client.get("/ready").status_code == 200


def _send(path: str, target: Target, schema: Any, example_count: int, *, is_random: bool) -> None:
    operation = schema[path]["POST"]
    facts = DOCUMENT["paths"][path]["post"]
    target.log_in()
    known = target.known_ids(path)
    for mode in GenerationMode:

        @given(
            case=operation.as_strategy(generation_mode=mode),
            pick=st.integers(0, 7),
            names_known=st.booleans(),
        )
        @settings(
            max_examples=example_count,
            derandomize=not is_random,
            database=None,
            deadline=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        def attempt(case: Any, pick: int, names_known: bool) -> None:
            body = with_known_ids(case.body, known, pick) if names_known else case.body
            target.judge.call(path, facts, body, _headers(case.headers))

        attempt()


def _headers(made: Any) -> dict[str, str]:
    """Those of the headers that HTTP can carry, and that do not say who calls."""
    texts = {str(key): str(value) for key, value in (made or {}).items()}
    return {
        key: value
        for key, value in texts.items()
        if value.isascii() and value.isprintable() and value == value.strip() and key.lower() != "authorization"
    }
