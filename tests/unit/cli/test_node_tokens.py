"""`limiquantix node token` and `revoke-certificate`: what they ask of the API, and what they print of the answers."""

from __future__ import annotations

import json

import pytest

from limiquantix.errors import NotFound, Reason
from tests.support.fake_http_api import NODE_ID, Document, FakeApi, Run, node, uuid_of

PAST, FUTURE = "2024-01-01T00:00:00Z", "2124-01-01T00:00:00Z"


@pytest.fixture(autouse=True)
def one_node(api: FakeApi) -> None:
    api.answers["ListNodes"] = lambda _: {"nodes": [node("host-a")]}


def asked(api: FakeApi, method: str) -> Document:
    return next(request for called, request in api.requests if called == method)


def token(number: int, **fields: object) -> Document:
    return {"id": uuid_of(number), "createdBy": "user:eve", "expiresAt": FUTURE, **fields}


def made(request: Document) -> Document:
    details = {"expiresAt": FUTURE, "hostname": request.get("hostname", "")}
    return {"token": "lqj1.abc", "details": details, "authorityFingerprint": "f" * 64}


def test_create_prints_the_token_alone_where_scripts_read(api: FakeApi, run: Run) -> None:
    api.answers["CreateJoinToken"] = made
    result = run("node", "token", "create", "--host", "host-7", "--minutes", "15", "--label", "rack=7")
    assert asked(api, "CreateJoinToken") == {"hostname": "host-7", "lifetimeSec": 900, "labels": {"rack": "7"}}
    assert result.stdout == "lqj1.abc\n"
    assert "good once, for host-7" in result.stderr
    assert "f" * 64 in result.stderr


def test_create_for_a_node_names_it_by_its_id(api: FakeApi, run: Run) -> None:
    api.answers["CreateJoinToken"] = made
    run("node", "token", "create", "--node", "host-a")
    assert asked(api, "CreateJoinToken") == {"hostname": "", "lifetimeSec": 3600, "nodeId": NODE_ID, "labels": {}}
    assert run("node", "token", "create", "--node", "host-a", "--host", "x").exit_code == 2


def test_list_says_what_became_of_each(api: FakeApi, run: Run) -> None:
    tokens = [
        token(1),
        token(2, usedAt=PAST, usedByNodeId=NODE_ID),
        token(3, revokedAt=PAST),
        token(4, expiresAt=PAST, hostname="host-7"),
    ]
    api.answers["ListJoinTokens"] = lambda _: {"tokens": tokens}
    lines = run("node", "token", "list").stdout.splitlines()[1:]
    assert [line.split()[1] for line in lines] == ["unused", "used", "revoked", "expired"]
    assert NODE_ID in lines[1]
    assert "host-7" in lines[3]
    assert json.loads(run("node", "token", "list", "-o", "json").stdout) == {"tokens": tokens}


def test_revoke_takes_the_beginning_of_an_id(api: FakeApi, run: Run) -> None:
    found = token(1, id="abcd1234-0000-4000-8000-000000000000")
    api.answers["ListJoinTokens"] = lambda _: {"tokens": [found]}
    api.answers["RevokeJoinToken"] = lambda _: {}
    result = run("node", "token", "revoke", "abcd1234")
    assert asked(api, "RevokeJoinToken") == {"id": found["id"]}
    assert result.stdout == f"token {found['id']} is revoked\n"


def test_revoking_a_certificate_asks_first(api: FakeApi, run: Run) -> None:
    api.answers["RevokeNodeCertificate"] = lambda _: {}
    assert run("node", "revoke-certificate", "host-a", input="n\n").exit_code == 1
    assert "RevokeNodeCertificate" not in [method for method, _ in api.requests]
    result = run("node", "revoke-certificate", "host-a", input="y\n")
    assert asked(api, "RevokeNodeCertificate") == {"nodeId": NODE_ID}
    assert "node token create --node host-a" in result.stdout


def test_refusal_is_a_message_and_a_status(api: FakeApi, run: Run) -> None:
    def refuse(_: Document) -> Document:
        raise NotFound(Reason.NODE_NOT_FOUND, "no host joined as node host-a")

    api.answers["RevokeNodeCertificate"] = refuse
    result = run("node", "revoke-certificate", "host-a", "--yes")
    assert result.exit_code == 1
    assert "no host joined" in result.stderr
