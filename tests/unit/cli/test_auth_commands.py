"""`limiquantix login`, `logout`, `whoami`, and what is kept between commands."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from controlplane.cli.credentials import BearerAuth, Credential, CredentialFile
from controlplane.cli.device_login import id_token_of
from controlplane.cli.failures import Failure
from controlplane.cli.session import DEFAULT_SERVER
from limiquantix.errors import Reason, Unauthenticated
from tests.support.fake_http_api import Document, FakeApi, Run
from tests.support.oidc_issuer import CLIENT, running_issuer
from tests.support.self_signed import write_self_signed


def answer(number: int = 1, minutes: float = 15) -> Document:
    ends = datetime.now(UTC) + timedelta(minutes=minutes)
    return {
        "accessToken": f"access-{number}",
        "accessExpiresAt": ends.isoformat().replace("+00:00", "Z"),
        "refreshToken": f"lqr_{number}",
        "user": {"name": "alice"},
    }


@pytest.fixture
def file(tmp_path: Path) -> CredentialFile:
    return CredentialFile(tmp_path / "config" / "limiquantix" / "credentials.json")


def test_login_keeps_tokens_for_later_commands_and_for_nobody_else(
    run: Run, api: FakeApi, file: CredentialFile
) -> None:
    api.answers = {"Login": lambda _: answer(), "WhoAmI": lambda _: {"kind": "user", "name": "alice"}}
    result = run("login", "alice", input="correct horse battery\n")
    assert result.exit_code == 0, result.output
    assert "logged in to https://127.0.0.1:8080 as alice" in result.output
    assert "correct" not in result.output
    assert api.requests == [("Login", {"name": "alice", "password": "correct horse battery"})]
    assert api.header("Login", "authorization") is None
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700

    assert "alice" in run("whoami").output
    assert api.header("WhoAmI", "authorization") == "Bearer access-1"


def test_login_needs_a_name_or_an_issuer(run: Run) -> None:
    assert run("login").exit_code == 2
    assert run("login", "alice", "--issuer", "corp").exit_code == 2


def test_refused_login_keeps_nothing(run: Run, api: FakeApi, file: CredentialFile) -> None:
    def refuse(_: Document) -> Document:
        raise Unauthenticated(Reason.LOGIN_FAILED, "the name or the password is wrong")

    api.answers["Login"] = refuse
    result = run("login", "alice", input="wrong\n")
    assert result.exit_code == 1
    assert "the name or the password is wrong" in result.output
    assert not file.path.exists()


def test_token_of_the_environment_wins(run: Run, api: FakeApi, file: CredentialFile) -> None:
    file.keep(DEFAULT_SERVER, Credential.of_answer(answer()))
    api.answers["WhoAmI"] = lambda _: {"kind": "api-key", "name": "alice/ci", "permissions": ["vm.read"]}
    result = run("whoami", env={"LIMIQUANTIX_TOKEN": "lqk_1_2"})
    assert "vm.read" in result.output
    assert api.header("WhoAmI", "authorization") == "Bearer lqk_1_2"


def test_tokens_are_renewed_before_they_end(run: Run, api: FakeApi, file: CredentialFile) -> None:
    file.keep(DEFAULT_SERVER, Credential.of_answer(answer(1, minutes=0.5)))
    api.answers = {"WhoAmI": lambda _: {}, "Refresh": lambda _: answer(2)}
    assert run("whoami").exit_code == 0
    assert api.requests[0] == ("Refresh", {"refreshToken": "lqr_1"})
    assert api.header("Refresh", "authorization") is None
    assert api.header("WhoAmI", "authorization") == "Bearer access-2"
    kept = file.get(DEFAULT_SERVER)
    assert kept is not None
    assert kept.refresh_token == "lqr_2"


def test_tokens_of_another_server_are_not_sent(run: Run, api: FakeApi, file: CredentialFile) -> None:
    file.keep("https://elsewhere.example", Credential.of_answer(answer()))
    api.answers["WhoAmI"] = lambda _: {}
    run("whoami")
    assert api.header("WhoAmI", "authorization") is None


def client(file: CredentialFile, server: str, handle: Any) -> httpx.Client:
    return httpx.Client(base_url=server, auth=BearerAuth(server, file), transport=httpx.MockTransport(handle))


def test_refused_token_is_renewed_once_and_the_call_repeated(file: CredentialFile) -> None:
    server, seen = "https://cp.example", []
    file.keep(server, Credential.of_answer(answer(1)))

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.path.rpartition("/")[2], request.headers.get("authorization")))
        if request.url.path.endswith("Refresh"):
            return httpx.Response(200, json=answer(2))
        return httpx.Response(200 if seen[-1][1] == "Bearer access-2" else 401, json={"n": 1})

    with client(file, server, handle) as http:
        assert http.post("/x/GetVM").json() == {"n": 1}
        assert http.post("/x/GetVM").status_code == 200
    assert [name for name, _ in seen] == ["GetVM", "Refresh", "GetVM", "GetVM"]


def test_session_that_is_over_is_forgotten_and_the_refusal_is_that_of_the_call(file: CredentialFile) -> None:
    server = "https://cp.example"
    file.keep(server, Credential.of_answer(answer(1, minutes=-1)))

    def handle(request: httpx.Request) -> httpx.Response:
        is_refresh = request.url.path.endswith("Refresh")
        return httpx.Response(401, json={"of": "refresh" if is_refresh else request.headers.get("authorization")})

    with client(file, server, handle) as http:
        assert http.post("/x/GetVM").json() == {"of": None}
    assert file.get(server) is None


def test_token_that_another_command_renewed_is_used(file: CredentialFile) -> None:
    server, seen = "https://cp.example", []
    file.keep(server, Credential.of_answer(answer(1)))

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization"))
        file.keep(server, Credential.of_answer(answer(2)))
        return httpx.Response(200 if seen[-1] == "Bearer access-2" else 401)

    with client(file, server, handle) as http:
        assert http.post("/x/GetVM").status_code == 200
    assert seen == ["Bearer access-1", "Bearer access-2"]


def test_no_token_goes_over_plain_http_to_another_machine(file: CredentialFile) -> None:
    server = "http://cp.example"
    file.keep(server, Credential.of_answer(answer()))
    with client(file, server, lambda _: httpx.Response(200)) as http, pytest.raises(Failure, match="no token is sent"):
        http.post("/x/GetVM")


def test_file_that_others_can_read_is_refused(run: Run, file: CredentialFile) -> None:
    file.keep(DEFAULT_SERVER, Credential.of_answer(answer()))
    os.chmod(file.path, 0o644)
    result = run("whoami")
    assert result.exit_code == 1
    assert "others can read" in result.output
    assert "access-1" not in result.output


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"servers": 1}', '{"servers": {"https://127.0.0.1:8080": {"a": 1}}}']
)
def test_damaged_file_is_named(run: Run, file: CredentialFile, text: str) -> None:
    file.keep(DEFAULT_SERVER, None)
    file.path.write_text(text)
    result = run("whoami")
    assert result.exit_code == 1
    assert "is damaged" in result.output


def test_login_keeps_whom_to_believe_and_logout_forgets_the_session_only(
    run: Run, api: FakeApi, file: CredentialFile, tmp_path: Path
) -> None:
    write_self_signed(tmp_path / "ca.pem", tmp_path / "key.pem", "authority")
    authority = (tmp_path / "ca.pem").read_text()
    api.answers["Login"] = lambda _: answer()
    assert run("--ca", str(tmp_path / "ca.pem"), "login", "alice", input="correct horse battery\n").exit_code == 0
    (tmp_path / "ca.pem").unlink()
    api.answers["Logout"] = lambda _: {}
    assert "logged out" in run("logout").output
    assert api.header("Logout", "authorization") == "Bearer access-1"
    assert file.get(DEFAULT_SERVER) is None
    assert file.authority(DEFAULT_SERVER) == authority
    assert "not logged in" in run("logout").output


def test_login_at_an_issuer_exchanges_its_token(run: Run, api: FakeApi) -> None:
    with running_issuer() as issuer:
        listed = {"name": "corp", "url": issuer.url, "clientId": CLIENT, "scopes": ["openid"]}
        api.answers = {"ListIssuers": lambda _: {"issuers": [listed]}, "ExchangeToken": lambda _: answer()}
        result = run("login", "--issuer", "corp")
    assert result.exit_code == 0, result.output
    assert "WDJB-MJHT" in result.output
    method, request = api.requests[-1]
    assert (method, request["issuer"]) == ("ExchangeToken", "corp")
    assert request["idToken"].count(".") == 2
    assert issuer.polls == 2
    assert api.pauses_s == [1.0, 1.0]


def test_issuer_that_is_not_trusted_is_named(run: Run, api: FakeApi) -> None:
    api.answers["ListIssuers"] = lambda _: {"issuers": [{"name": "corp"}]}
    result = run("login", "--issuer", "other")
    assert result.exit_code == 1
    assert "it trusts corp" in result.output


def test_issuer_is_not_asked_over_plain_http() -> None:
    with pytest.raises(Failure, match="plain HTTP"):
        id_token_of({"url": "http://idp.example", "clientId": CLIENT}, print, lambda _: None)


def test_token_is_printed_for_other_programs_and_renewed_before_it_ends(
    run: Run, api: FakeApi, file: CredentialFile
) -> None:
    file.keep(DEFAULT_SERVER, Credential.of_answer(answer(1, minutes=0.5)))
    api.answers = {"Refresh": lambda _: answer(2), "WhoAmI": lambda _: {"kind": "user", "name": "alice"}}
    assert run("token").output == "access-2\n"
    assert run("token").output == "access-2\n"
    assert [method for method, _ in api.requests].count("Refresh") == 1
