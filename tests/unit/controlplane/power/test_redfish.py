"""Requests of the Redfish agent, and answers of controllers that are not as they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from controlplane.power.agent import AgentFailed
from controlplane.power.devices import RedfishDevice
from controlplane.power.redfish import RedfishAgent

SYSTEM = "/redfish/v1/Systems/1"
TARGET = f"{SYSTEM}/Actions/Reset.Odd"
DOCUMENTS: dict[str, Any] = {
    "/redfish/v1/Systems": {"Members": [{"@odata.id": SYSTEM + "/"}]},
    SYSTEM: {"PowerState": "Off", "Actions": {"#ComputerSystem.Reset": {"target": TARGET}}},
}


def agent(documents: dict[str, Any], requests: list[httpx.Request], directory: Path, **changes: Any) -> RedfishAgent:
    password = directory / "password"
    password.touch(0o600)
    password.write_text("secret\n")

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        if request.method == "POST":
            return httpx.Response(204)
        document = documents.get(request.url.path)
        if isinstance(document, httpx.Response):
            return document
        return httpx.Response(404) if document is None else httpx.Response(200, json=document)

    values = {"host": "h1", "agent": "redfish", "address": "https://bmc", "username": "u", "password_file": password}
    return RedfishAgent(RedfishDevice.model_validate(values | changes), httpx.MockTransport(answer))


async def test_switch_off_posts_force_off_to_the_target_the_system_names(tmp_path: Path) -> None:
    requests: list[httpx.Request] = []
    assert await agent(DOCUMENTS, requests, tmp_path).switch_off() == "ForceOff accepted"
    posted = requests[-1]
    assert (posted.method, posted.url.path, json.loads(posted.content)) == ("POST", TARGET, {"ResetType": "ForceOff"})
    assert posted.headers["authorization"].startswith("Basic ")


async def test_switch_off_without_named_target_takes_the_usual_one(tmp_path: Path) -> None:
    requests: list[httpx.Request] = []
    await agent({SYSTEM: {}}, requests, tmp_path, system_id="1").switch_off()
    assert requests[-1].url.path == f"{SYSTEM}/Actions/ComputerSystem.Reset"


@pytest.mark.parametrize("state", ["On", "PoweringOff", "PoweringOn", "Paused"])
async def test_read_takes_only_off_for_off(tmp_path: Path, state: str) -> None:
    reading = await agent({SYSTEM: {"PowerState": state}}, [], tmp_path, system_id="1").read()
    assert (reading.is_off, reading.words) == (False, f"PowerState {state}")


@pytest.mark.parametrize(
    ("documents", "message", "is_final"),
    [
        ({SYSTEM: httpx.Response(401)}, "status 401, check username", True),
        ({SYSTEM: httpx.Response(503)}, "status 503", False),
        ({SYSTEM: httpx.Response(302, headers={"location": "http://elsewhere/"})}, "status 302", False),
        ({SYSTEM: httpx.Response(200, text="<html>")}, "not JSON", False),
        ({SYSTEM: [1]}, "no JSON object", False),
        ({SYSTEM: {}}, "no PowerState", False),
    ],
)
async def test_read_of_a_useless_answer_fails(
    tmp_path: Path, documents: dict[str, Any], message: str, is_final: bool
) -> None:
    with pytest.raises(AgentFailed, match=message) as caught:
        await agent(documents, [], tmp_path, system_id="1").read()
    assert caught.value.is_final is is_final
    assert "secret" not in str(caught.value)


async def test_several_systems_need_a_choice(tmp_path: Path) -> None:
    documents = {"/redfish/v1/Systems": {"Members": [{"@odata.id": SYSTEM}, {"@odata.id": SYSTEM}]}}
    with pytest.raises(AgentFailed, match="2 systems instead of one: configure system_id"):
        await agent(documents, [], tmp_path).read()


@pytest.mark.parametrize("link", ["http://elsewhere/redfish/v1", "//elsewhere/redfish/", None])
async def test_links_that_leave_the_controller_are_not_followed(tmp_path: Path, link: str | None) -> None:
    requests: list[httpx.Request] = []
    documents = {"/redfish/v1/Systems": {"Members": [{"@odata.id": link}]}}
    with pytest.raises(AgentFailed, match="none of its own"):
        await agent(documents, requests, tmp_path).read()
    assert {request.url.host for request in requests} == {"bmc"}
