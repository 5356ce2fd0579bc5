"""`vm migrate`: what is asked for, what is expected, how far it is, what it took."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controlplane.cli.migration_views import forecast_warnings, progress_line
from controlplane.cli.vm_migrate import _sent
from tests.support.fake_http_api import FakeApi, Run, node, vm

FORECAST: dict[str, Any] = {
    "durationMs": "2400",
    "downtimeMs": "60",
    "memoryBytes": str(512 * 2**20),
    "dirtyBytesPerSec": str(3 * 2**20),
    "bandwidthBytesPerSec": "125000000",
    "converges": True,
    "ends": True,
    "passCount": 2,
}
STATS = {"bytesTransferred": str(530 * 2**20), "downtimeMs": "42", "durationMs": "2100"}


@pytest.fixture(autouse=True)
def cluster(api: FakeApi) -> None:
    api.have_vms(vm("web"))
    there = node("host-2")
    api.answers["ListNodes"] = lambda _: {"nodes": [node("host-1"), there]}
    api.answers["GetNode"] = lambda _: there

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        forecast = {**FORECAST, "targetNodeId": there["id"]}
        if request.get("validateOnly"):
            return {"vm": vm("web"), "forecast": forecast}
        return {"vm": vm("web"), "stats": STATS, "forecast": forecast}

    api.answers["MigrateVM"] = answer


def test_migration_tells_what_is_expected_and_what_it_took(api: FakeApi, run: Run) -> None:
    result = run("vm", "migrate", "web", "--to", "host-2")
    assert result.exit_code == 0, result.stderr
    expected, changed, took = result.stdout.splitlines()
    assert expected == "to node host-2: expected to take 2.4s, with the guest standing still for 60 ms"
    assert changed.startswith("VM web (")
    assert took == "took 2.1s (expected 2.4s); the guest stood still for 42 ms (expected 60 ms); 530 MiB sent"
    wanted = {"vmId": vm("web")["id"], "targetNodeId": node("host-2")["id"], "live": True}
    asked = [request for method, request in api.requests if method == "MigrateVM"]
    assert asked == [{**wanted, "validateOnly": True}, wanted]


def test_every_option_is_asked_for(api: FakeApi, run: Run) -> None:
    options = ("--cold", "--max-downtime-ms", "70", "--bandwidth", "900", "--no-post-copy", "--auto-converge")
    result = run("vm", "migrate", "web", *options, "--shared-storage-only", "-o", "json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["stats"] == STATS
    assert api.request("MigrateVM") == {
        "vmId": vm("web")["id"],
        "live": False,
        "maxDowntimeMs": 70,
        "bandwidthMbps": 900,
        "postCopy": False,
        "autoConverge": True,
        "sharedStorageOnly": True,
    }


def test_dry_run_moves_nothing(api: FakeApi, run: Run) -> None:
    result = run("vm", "migrate", "web", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "host-2" in result.stdout
    assert "60 ms" in result.stdout
    assert "1000 Mbit/s" in result.stdout
    assert api.request("MigrateVM")["validateOnly"] is True


def test_guest_that_writes_too_fast_is_warned_of(api: FakeApi, run: Run) -> None:
    ways = [{"name": "post-copy", "durationMs": "9000", "downtimeMs": "30", "ends": True}]
    forecast = {**FORECAST, "converges": False, "ends": False, "alternatives": ways}
    (warning,) = forecast_warnings(forecast)
    assert "--post-copy would take 9.0s, standing still for 30 ms" in warning
    assert "--cold" in warning
    api.answers["MigrateVM"] = lambda _: {"vm": vm("web"), "forecast": forecast}
    result = run("vm", "migrate", "web", "--dry-run")
    assert warning in result.stderr


def test_progress_is_a_bar() -> None:
    text = "the transfer: 50 %, 60 MiB sent, 60 MiB left"
    assert progress_line({"percent": 50}, text) == f"[{'#' * 12}{'.' * 12}] 50 %, 60 MiB sent, 60 MiB left"
    assert progress_line({"percent": 500}, "") == f"[{'#' * 24}] 100 %"
    assert progress_line({}, text) == ""


@pytest.mark.parametrize("result", ["", "[1]", "{", '{"percent": 3}'])
def test_what_is_no_progress_is_not_shown(result: str) -> None:
    step = {"name": "transfer", "state": "RUNNING", "resultJson": result}
    assert _sent({"steps": [step]}) == ({"percent": 3} if result == '{"percent": 3}' else {})


def test_unknown_node_is_an_error_before_anything_is_asked_for(api: FakeApi, run: Run) -> None:
    result = run("vm", "migrate", "web", "--to", "nowhere")
    assert result.exit_code != 0
    assert "nowhere" in result.stderr
    assert "MigrateVM" not in [method for method, _ in api.requests]
