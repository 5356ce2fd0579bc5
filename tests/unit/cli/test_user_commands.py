"""`limiquantix user` and `limiquantix api-key`, against a control plane in a dictionary."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.fake_http_api import Document, FakeApi, Run, uuid_of

ALICE: Document = {"id": uuid_of(1), "name": "alice", "groups": ["operators"], "createdAt": "2024-01-01T00:00:00Z"}
KEY: Document = {
    "id": uuid_of(5),
    "name": "ci",
    "ownerName": "alice",
    "expiresAt": "2124-01-01T00:00:00Z",
    "permissions": ["vm.read"],
}


def test_user_is_made_with_a_password_that_is_not_on_the_command_line(run: Run, api: FakeApi) -> None:
    api.answers["CreateUser"] = lambda _: ALICE
    result = run("user", "create", "alice", "--group", "operators", input="correct horse battery\n")
    assert result.exit_code == 0, result.output
    assert api.requests == [
        (
            "CreateUser",
            {"name": "alice", "displayName": "", "groups": ["operators"], "password": "correct horse battery"},
        )
    ]
    assert "correct" not in result.output


def test_users_are_listed(run: Run, api: FakeApi) -> None:
    bob = {**ALICE, "name": "bob@corp", "issuer": "corp", "isDisabled": True}
    api.answers["ListUsers"] = lambda _: {"users": [ALICE, bob]}
    result = run("user", "list", "--group", "operators")
    assert [line.split()[:2] for line in result.output.splitlines()[1:]] == [
        ["alice", "active"],
        ["bob@corp", "disabled"],
    ]
    assert api.requests[0][1]["group"] == "operators"
    assert json.loads(run("user", "list", "-o", "json").output)["totalCount"] == 2


@pytest.mark.parametrize(
    ("arguments", "request_"),
    [
        (("--group", "a", "--group", "b"), {"id": "alice", "groups": ["a", "b"], "replaceGroups": True}),
        (("--no-groups",), {"id": "alice", "groups": [], "replaceGroups": True}),
        (
            ("--display-name", "A"),
            {"id": "alice", "groups": [], "replaceGroups": False, "displayName": "A"},
        ),
    ],
)
def test_update_says_what_changes(run: Run, api: FakeApi, arguments: tuple[str, ...], request_: Document) -> None:
    api.answers["UpdateUser"] = lambda _: ALICE
    assert run("user", "update", "alice", *arguments).exit_code == 0
    assert api.requests == [("UpdateUser", request_)]


@pytest.mark.parametrize(
    ("command", "method"),
    [("show", "GetUser"), ("disable", "DisableUser"), ("enable", "EnableUser"), ("end-sessions", "RevokeSessions")],
)
def test_command_names_the_user(run: Run, api: FakeApi, command: str, method: str) -> None:
    api.answers[method] = lambda _: ALICE
    assert "alice" in run("user", command, "alice").output
    assert api.requests == [(method, {"id": "alice"})]


def test_delete_asks_first(run: Run, api: FakeApi) -> None:
    api.answers["DeleteUser"] = lambda _: {}
    assert run("user", "delete", "alice", input="n\n").exit_code == 1
    assert api.requests == []
    assert "is deleted" in run("user", "delete", "alice", "--yes").output


def test_reset_shows_the_password_that_was_made(run: Run, api: FakeApi) -> None:
    api.answers["ResetPassword"] = lambda request: {} if "newPassword" in request else {"newPassword": "made-for-you"}
    assert "made-for-you" in run("user", "reset-password", "alice").output
    result = run("user", "reset-password", "alice", "--ask", input="my own good one\n")
    assert api.requests[-1][1] == {"id": "alice", "newPassword": "my own good one"}
    assert "my own" not in result.output


def test_own_password_needs_the_old_one(run: Run, api: FakeApi) -> None:
    api.answers["ChangePassword"] = lambda _: {}
    assert "is changed" in run("user", "change-password", input="old one\nnew good one\n").output
    assert api.requests == [("ChangePassword", {"currentPassword": "old one", "newPassword": "new good one"})]


def test_key_is_made_and_shown_once(run: Run, api: FakeApi) -> None:
    api.answers["CreateApiKey"] = lambda _: {"apiKey": KEY, "secret": "lqk_1_2"}
    result = run("api-key", "create", "ci", "--days", "90", "--permission", "vm.read", "--project", uuid_of(9))
    assert result.output.splitlines()[-1] == "lqk_1_2"
    request = api.requests[0][1]
    days = datetime.fromisoformat(request.pop("expiresAt")) - datetime.now(UTC)
    assert timedelta(days=89) < days <= timedelta(days=90)
    assert request == {"name": "ci", "permissions": ["vm.read"], "projectIds": [uuid_of(9)]}


def test_key_needs_an_end(run: Run) -> None:
    assert run("api-key", "create", "ci").exit_code == 2
    assert run("api-key", "create", "ci", "--days", "366").exit_code == 2


def test_keys_are_listed_and_ended_by_the_beginning_of_their_id(run: Run, api: FakeApi) -> None:
    api.answers = {"ListApiKeys": lambda _: {"apiKeys": [KEY]}, "RevokeApiKey": lambda _: KEY}
    assert "never" in run("api-key", "list", "--all").output
    assert api.requests[0][1]["allUsers"] is True
    assert "key ci of alice has ended" in run("api-key", "revoke", uuid_of(5)[:8]).output
    assert api.requests[-1] == ("RevokeApiKey", {"id": uuid_of(5)})
