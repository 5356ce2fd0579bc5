from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from controlplane.cli.event_commands import SEARCHED_COUNT
from controlplane.cli.event_views import SEVERITIES, TYPES
from controlplane.domain.event import EventType
from controlplane.events.messages import VM_SEVERITIES
from limiquantix.errors import InvalidArgument, OutOfRange, Reason, Unauthenticated
from tests.support.fake_http_api import NODE_ID, Document, FakeApi, Run, node, uuid_of, vm

CTRL_C = KeyboardInterrupt()


def _event(revision: int, type_: str = "vm.started", severity: str = "", **fields: object) -> Document:
    """A SystemEvent; severity INFO is left out, as in the API."""
    return (
        {
            "id": uuid_of(revision),
            "timestamp": f"2024-01-01T00:00:{revision % 60:02d}.123456Z",
            "type": "VM_STARTED",
            "message": f"VM web-{revision} runs",
            "resourceId": uuid_of(1),
            "metadata": {"type": type_, "actor": "anonymous"},
            "revision": str(revision),
        }
        | ({"severity": severity} if severity else {})
        | fields
    )


def _vm_event(revision: int, **fields: object) -> Document:
    return {
        "id": uuid_of(revision),
        "vmId": uuid_of(1),
        "type": "vm.started",
        "severity": "info",
        "createdAt": f"2024-01-01T00:00:{revision:02d}Z",
        "message": f"VM web-{revision} runs",
        "revision": str(revision),
    } | fields


def _newest(api: FakeApi, revision: int) -> None:
    bookmark = {"type": "BOOKMARK"} | ({"revision": str(revision)} if revision else {})
    api.scenes["WatchVMs"] = [[bookmark, CTRL_C]]


def test_types_and_severities_are_those_there_are() -> None:
    assert set(TYPES) == {str(each) for each in EventType}
    assert set(SEVERITIES) == set(VM_SEVERITIES)


def test_events_of_everything_are_the_end_of_the_log(api: FakeApi, run: Run) -> None:
    _newest(api, 99)
    api.scenes["StreamEvents"] = [[_event(97), _event(98, message="x\x1b[2J"), _event(99, severity="CRITICAL"), CTRL_C]]
    result = run("events", "--limit", "3")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "TIME                  SEVERITY  TYPE        BY         MESSAGE",
        "2024-01-01T00:00:37Z  info      vm.started  anonymous  VM web-97 runs",
        "2024-01-01T00:00:38Z  info      vm.started  anonymous  x\\x1b[2J",
        "2024-01-01T00:00:39Z  error     vm.started  anonymous  VM web-99 runs",
    ]
    assert api.request("StreamEvents") == {"fromRevision": "96"}


def test_events_wide_tell_what_they_are_about(api: FakeApi, run: Run) -> None:
    _newest(api, 3)
    api.scenes["StreamEvents"] = [[_event(3), CTRL_C]]
    header, row = run("events", "--wide").stdout.splitlines()
    assert header.split()[-2:] == ["ABOUT", "REVISION"]
    assert row.split()[-2:] == [uuid_of(1), "3"]


def test_events_json_is_the_apis_own_documents_newest_first(api: FakeApi, run: Run) -> None:
    _newest(api, 3)
    api.scenes["StreamEvents"] = [[_event(2), _event(3), CTRL_C]]
    assert json.loads(run("events", "-o", "json").stdout) == {"events": [_event(3), _event(2)]}


@pytest.mark.parametrize("revision", [0, 1])
def test_events_of_an_empty_log_are_none(api: FakeApi, run: Run, revision: int) -> None:
    _newest(api, revision)
    assert len(run("events").stdout.splitlines()) == 1


def test_events_older_than_the_log_begin_where_it_begins(api: FakeApi, run: Run) -> None:
    _newest(api, 99)
    gone = OutOfRange(Reason.REVISION_UNAVAILABLE, "gone", metadata={"oldest": "97", "newest": "99"})
    api.scenes["StreamEvents"] = [[gone], [_event(98), _event(99), CTRL_C]]
    assert len(run("events").stdout.splitlines()) == 3
    assert api.requests_of("StreamEvents")[1] == {"fromRevision": "97"}


def test_events_that_are_looked_for_in_a_long_log_say_how_far_back_that_was(api: FakeApi, run: Run) -> None:
    newest = SEARCHED_COUNT + 100
    _newest(api, newest)
    api.scenes["StreamEvents"] = [[_event(newest - 1), _event(newest, "vm.crashed"), CTRL_C]]
    result = run("events", "--type", "vm.crashed")
    assert len(result.stdout.splitlines()) == 2
    assert f"only the newest {SEARCHED_COUNT} events" in result.stderr
    assert api.request("StreamEvents") == {"fromRevision": "100"}


def test_events_since_a_moment_within_the_log_are_complete(api: FakeApi, run: Run) -> None:
    newest = SEARCHED_COUNT + 100
    _newest(api, newest)
    api.scenes["StreamEvents"] = [[_event(newest - 40), _event(newest, timestamp="2024-01-01T00:01:00Z"), CTRL_C]]
    result = run("events", "--since", "2024-01-01T00:00:20.123456Z")
    assert len(result.stdout.splitlines()) == 2
    assert result.stderr == ""


def test_events_of_a_vm_are_filtered_by_the_server(api: FakeApi, run: Run) -> None:
    api.have_vms(vm("web", 1))
    api.answers["ListVMEvents"] = lambda _: {"events": [_vm_event(5, user="alice"), _vm_event(4)]}
    options = ["--type", "vm.started", "--severity", "info", "--since", "2024-01-01T01:00:00+01:00", "--limit", "7"]
    lines = run("events", "--vm", "web", *options).stdout.splitlines()
    assert lines[1:] == [
        "2024-01-01T00:00:04Z  info      vm.started  -      VM web-4 runs",
        "2024-01-01T00:00:05Z  info      vm.started  alice  VM web-5 runs",
    ]
    assert api.request("ListVMEvents") == {
        "vmId": uuid_of(1),
        "type": "vm.started",
        "severity": "info",
        "since": "2024-01-01T00:00:00+00:00",
        "limit": 7,
    }


def test_events_since_some_time_ago_are_counted_from_now(api: FakeApi, run: Run) -> None:
    api.answers["ListVMEvents"] = lambda _: {}
    assert run("events", "--vm", uuid_of(1), "--since", "1h30m").exit_code == 0
    request = api.request("ListVMEvents")
    age = datetime.now(UTC) - datetime.fromisoformat(request["since"])
    assert timedelta(minutes=90) <= age < timedelta(minutes=91)
    assert request["limit"] == 1000


def test_events_of_a_node_are_filtered_by_what_the_server_does_not_filter(api: FakeApi, run: Run) -> None:
    api.answers["ListNodes"] = lambda _: {"nodes": [node("host-1")]}
    silent = {
        "nodeId": NODE_ID,
        "type": "WARNING",
        "reason": "node.silent",
        "message": "host-1 is silent",
        "timestamp": "2024-01-01T00:00:01Z",
    }
    api.answers["ListNodeEvents"] = lambda _: {"events": [silent, silent | {"reason": "node.updated"}, silent]}
    lines = run("events", "--node", "host-1", "--type", "node.silent", "--severity", "warning", "--limit", "1")
    assert lines.stdout.splitlines()[1:] == ["2024-01-01T00:00:01Z  warning   node.silent  -   host-1 is silent"]
    assert api.request("ListNodeEvents") == {"nodeId": NODE_ID, "types": ["WARNING"], "limit": 1000}


def test_follow_prints_what_happens_and_loses_nothing_when_the_connection_breaks(api: FakeApi, run: Run) -> None:
    _newest(api, 40)
    api.scenes["StreamEvents"] = [
        [httpx.ReadTimeout("quiet")],
        [_event(41)],
        [httpx.ConnectError("[Errno 111] Connection refused")],
        [_event(42), CTRL_C],
    ]
    result = run("events", "--follow")
    assert result.exit_code == 0
    assert [line.split("  ")[-1] for line in result.stdout.splitlines()] == ["VM web-41 runs", "VM web-42 runs"]
    begins = [request["fromRevision"] for request in api.requests_of("StreamEvents")]
    assert begins == ["40", "40", "41", "41"]


EXPIRED = Unauthenticated(Reason.CREDENTIAL_EXPIRED, "the access token has expired; get a new one")


def test_follow_goes_on_unnoticed_when_the_token_of_its_stream_ends(api: FakeApi, run: Run) -> None:
    _newest(api, 40)
    api.answers["WhoAmI"] = lambda _: {"name": "ann"}
    api.scenes["StreamEvents"] = [[_event(41), EXPIRED], [EXPIRED], [_event(42), CTRL_C]]
    result = run("events", "--follow")
    assert [line.split("  ")[-1] for line in result.stdout.splitlines()] == ["VM web-41 runs", "VM web-42 runs"]
    assert result.stderr == ""
    assert [request["fromRevision"] for request in api.requests_of("StreamEvents")] == ["40", "41", "41"]


def test_follow_ends_with_its_session(api: FakeApi, run: Run) -> None:
    def over(_: Document) -> Document:
        raise Unauthenticated(Reason.SESSION_ENDED, "the session has ended; log in again")

    _newest(api, 40)
    api.answers["WhoAmI"] = over
    api.scenes["StreamEvents"] = [[_event(41), EXPIRED]]
    result = run("events", "--follow")
    assert result.exit_code != 0
    assert "the session has ended; log in again" in result.stderr


def test_follow_filters_what_is_streamed(api: FakeApi, run: Run) -> None:
    _newest(api, 40)
    api.scenes["StreamEvents"] = [
        [_event(41), _event(42, "vm.crashed"), _event(43, "vm.crashed", "ERROR", resourceId=uuid_of(2)), CTRL_C]
    ]
    assert "web-43" in run("events", "-f", "--severity", "error").stdout
    output = run("events", "-f", "--vm", uuid_of(1), "--type", "vm.crashed").stdout
    assert [line.split("  ")[-1] for line in output.splitlines()] == ["VM web-42 runs"]


def test_follow_with_a_limit_shows_what_was_before_and_nothing_twice(api: FakeApi, run: Run) -> None:
    _newest(api, 40)
    # 41 was recorded after the log was asked how far it reaches, the last one has no place in it yet: both will come.
    past = [_vm_event(9) | {"revision": "0"}, _vm_event(41), _vm_event(40), _vm_event(39)]
    api.answers["ListVMEvents"] = lambda _: {"events": past}
    api.scenes["StreamEvents"] = [[_event(41), _event(42), CTRL_C]]
    output = run("events", "-f", "--vm", uuid_of(1), "--limit", "4").stdout
    assert [line.split("  ")[-1] for line in output.splitlines()] == [f"VM web-{n} runs" for n in (39, 40, 41, 42)]


def test_follow_json_is_a_line_for_every_event(api: FakeApi, run: Run) -> None:
    _newest(api, 40)
    api.scenes["StreamEvents"] = [[_event(41), _event(42), CTRL_C]]
    lines = run("events", "--follow", "-o", "json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [_event(41), _event(42)]


def test_vm_and_node_together_are_a_usage_error(api: FakeApi, run: Run) -> None:
    assert run("events", "--vm", "web", "--node", "host-1").exit_code == 2
    assert api.requests == []


@pytest.mark.parametrize(
    "text", ["", "yesterday", "5", "-1h", "1w", "2024-01-01T00:00:00", "2024-13-01T00:00:00Z", "1h\x1b"]
)
def test_since_that_is_no_time_is_a_usage_error(api: FakeApi, run: Run, text: str) -> None:
    result = run("events", "--since", text)
    assert result.exit_code == 2
    assert "--since" in result.stderr
    assert "\x1b" not in result.stderr


def test_since_longer_ago_than_there_was_time_is_a_usage_error(run: Run) -> None:
    assert run("events", "--since", "999999d").exit_code == 2


def test_refusal_of_a_filter_names_the_option(api: FakeApi, run: Run) -> None:
    def refuse(_: Document) -> Document:
        raise InvalidArgument(Reason.MALFORMED_REQUEST, "no such type")

    api.answers["ListVMEvents"] = refuse
    result = run("events", "--vm", uuid_of(1))
    assert result.exit_code == 1
    assert "no such type" in result.stderr
