"""`limiquantix-controlplane admin`, on a real database file."""

from __future__ import annotations

import asyncio
import os
import pwd
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from controlplane.config import ControlPlaneConfig, DatabaseSettings
from controlplane.domain.access import ADMIN
from controlplane.domain.audit import AuditOutcome
from controlplane.identity.admin_command import admin
from controlplane.secrets.settings import SecretSettings
from controlplane.state.interface import Store
from limiquantix.errors import Unauthenticated
from tests.support.databases import fresh_sqlite
from tests.support.identity_scene import HOME, PASSWORD, Clock, Plane
from tests.support.stores import open_store
from tests.support.trail_reading import records_of


@pytest.fixture
def url(tmp_path: Path) -> str:
    return fresh_sqlite(tmp_path)


def run(url: str, *arguments: str, text: str = "") -> Result:
    return CliRunner().invoke(admin, list(arguments), obj=config_of(url), input=text)


def config_of(url: str) -> ControlPlaneConfig:
    """The configuration of a control plane that keeps its key file beside its database."""
    beside = SecretSettings(key_file=Path(f"{url.removeprefix('sqlite:///')}.key"))
    return ControlPlaneConfig(database=DatabaseSettings(url=url), secrets=beside)


def logged_in(url: str, name: str, password: str) -> list[tuple[str, str]]:
    """Log in, and return the roles of whom that is."""

    async def work(store: Store) -> list[tuple[str, str]]:
        tokens = await Plane(store, Clock()).sessions.login(name, password, HOME)
        bindings = await store.read(lambda tx: tx.bindings())
        return [(each.role_id, each.place.key) for each in bindings if each.subject == f"user:{tokens.user.id}"]

    async def with_store() -> list[tuple[str, str]]:
        async with open_store(url) as store:
            return await work(store)

    return asyncio.run(with_store())


def test_first_administrator_can_log_in_and_is_admin_of_the_cluster(url: str) -> None:
    result = run(url, "create", "alice", text=f"{PASSWORD}\n")
    assert result.exit_code == 0, result.output
    assert PASSWORD not in result.output
    assert logged_in(url, "alice", PASSWORD) == [(ADMIN, "")]


def test_what_the_command_does_is_in_the_trail_with_who_ran_it(url: str) -> None:
    run(url, "create", "alice", text=f"{PASSWORD}\n")
    run(url, "create", "alice", text=f"{PASSWORD}\n")
    run(url, "reset", "alice", text=f"{PASSWORD}!\n")
    records = records_of(url, config_of(url).secrets)
    told = {(each.entry.method, each.outcome, each.entry.request_json) for each in records}
    assert told == {
        ("limiquantix-controlplane admin create", AuditOutcome.DONE, '{"name": "alice"}'),
        ("limiquantix-controlplane admin create", AuditOutcome.FAILED, '{"name": "alice"}'),
        ("limiquantix-controlplane admin reset", AuditOutcome.DONE, '{"name": "alice"}'),
    }
    user = pwd.getpwuid(os.getuid()).pw_name
    assert {(each.entry.principal_kind, each.entry.principal_name) for each in records} == {("machine", user)}
    assert PASSWORD not in str(records)


def test_nothing_is_done_that_cannot_be_recorded(url: str) -> None:
    run(url, "create", "alice", text=f"{PASSWORD}\n")
    config_of(url).secrets.key_file.chmod(0o644)
    result = run(url, "create", "bob", text=f"{PASSWORD}\n")
    assert result.exit_code == 1
    assert "chmod 600 it" in result.output
    with pytest.raises(Unauthenticated):
        logged_in(url, "bob", PASSWORD)


def test_generated_password_is_shown_and_good(url: str) -> None:
    result = run(url, "create", "alice", "--generate")
    assert result.exit_code == 0
    made = result.output.rpartition("password (shown only now): ")[2].strip()
    assert logged_in(url, "alice", made) == [(ADMIN, "")]


def test_reset_gives_a_new_password(url: str) -> None:
    run(url, "create", "alice", text=f"{PASSWORD}\n")
    assert run(url, "reset", "alice", text="another good one\n").exit_code == 0
    with pytest.raises(Unauthenticated):
        logged_in(url, "alice", PASSWORD)
    assert logged_in(url, "alice", "another good one") == [(ADMIN, "")]


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (("create", "Alice"), PASSWORD, "must begin with a letter"),
        (("create", "alice@corp"), PASSWORD, "must begin with a letter"),
        (("create", "alice"), "short", "at least 12 characters"),
        (("create", "alice"), "", "at least 12 characters"),
        (("create", "alice"), "aaaaaaaaaaaaaaaa", "too easy"),
        (("reset", "nobody"), PASSWORD, "does not exist"),
    ],
)
def test_what_is_not_fit_is_refused(url: str, arguments: tuple[str, ...], text: str, message: str) -> None:
    result = run(url, *arguments, text=text)
    assert result.exit_code == 1
    assert message in result.output


def test_name_is_given_once(url: str) -> None:
    run(url, "create", "alice", text=PASSWORD)
    result = run(url, "create", "alice", text=PASSWORD)
    assert result.exit_code == 1
    assert "is taken" in result.output


def test_database_that_is_not_there_is_named(tmp_path: Path) -> None:
    result = run(f"sqlite:///{tmp_path}/absent.db", "create", "alice", text=PASSWORD)
    assert result.exit_code == 1
    assert "migrate" in result.output
