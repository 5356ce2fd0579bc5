"""The command of the control plane: what a wrong configuration is told, and what is done to the database by hand."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
from pathlib import Path

import pytest
import yaml
from alembic import command
from click.testing import CliRunner, Result

from controlplane import app
from controlplane.audit.machine import MACHINE
from controlplane.composition.rules import utc_now
from controlplane.domain.audit import AuditOutcome
from controlplane.operations.desk import Order
from controlplane.secrets.keyring import Keyring
from controlplane.secrets.settings import SecretSettings
from controlplane.state.factory import create_store, migration_engine
from controlplane.state.interface import Store
from controlplane.state.revision import stored_revision
from controlplane.state.schema_base import REVISION
from limiquantix.errors import Reason, Unimplemented
from tests.support.control_plane_world import World
from tests.support.databases import alembic_config, empty_sqlite, fresh_sqlite
from tests.support.entry import security_settings
from tests.support.stores import open_store
from tests.support.trail_reading import records_of


def run(tmp_path: Path, settings: str, *words: str) -> Result:
    config = tmp_path / "controlplane.yaml"
    config.write_text(f"{yaml.safe_dump(security_settings(tmp_path, tmp_path / 'secret.key'))}\n{settings}\n")
    return CliRunner().invoke(app.main, ["--config", str(config), *words])


async def _declared(store: Store, wait_ms: int) -> int:
    await store.open()
    try:
        return await store.run(lambda tx: tx.declare_wait(wait_ms))
    finally:
        await store.close()


def test_file_of_power_controllers_that_is_not_there_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "configure_logging", lambda *_: None)
    missing = tmp_path / "fencing.yaml"
    result = run(tmp_path, f"power: {{devices_path: {missing}}}", "--database-url", fresh_sqlite(tmp_path))
    assert result.exit_code == 1
    complaint = f"Error: power controllers {missing} cannot be read: No such file or directory"
    assert [line for line in result.output.splitlines() if "Error" in line] == [complaint]


def test_wait_is_shortened_to_what_the_configuration_needs(tmp_path: Path) -> None:
    url = fresh_sqlite(tmp_path)
    assert asyncio.run(_declared(create_store(url), 60_000)) == 60_000
    result = run(tmp_path, "ha: {heartbeat_interval_s: 1}", "--database-url", url, "shorten-wait")
    assert (result.exit_code, result.output) == (0, "fenced hosts are waited for 9.52 s\n")
    assert asyncio.run(_declared(create_store(url), 1)) == 9_520


def keys_of(tmp_path: Path, url: str) -> SecretSettings:
    """Make the keys of a database as the first start of a control plane does, in the file that `run` names."""
    secrets = SecretSettings(key_file=tmp_path / "secret.key")

    async def work() -> None:
        async with open_store(url) as store:
            await Keyring(secrets, utc_now).unlock(store)

    asyncio.run(work())
    return secrets


def to_older_schema(url: str) -> str:
    """Take the newest migration back, as if a control plane of an older version had made the database."""
    with migration_engine(url).begin() as connection:
        command.downgrade(alembic_config(connection), "-1")
        found = stored_revision(connection)
    assert found is not None
    return found


def told_of(url: str, secrets: SecretSettings) -> list[tuple[str, AuditOutcome, str]]:
    records = records_of(url, secrets)
    user = pwd.getpwuid(os.getuid()).pw_name
    assert all((each.entry.principal_kind, each.entry.principal_name) == (MACHINE, user) for each in records)
    return [(each.entry.method, each.outcome, each.entry.request_json) for each in records]


def test_shortened_wait_is_on_record(tmp_path: Path) -> None:
    url = fresh_sqlite(tmp_path)
    assert run(tmp_path, "ha: {heartbeat_interval_s: 1}", "--database-url", url, "shorten-wait").exit_code == 0

    method = "limiquantix-controlplane shorten-wait"
    secrets = SecretSettings(key_file=tmp_path / "secret.key")
    assert told_of(url, secrets) == [(method, AuditOutcome.DONE, '{"wait_s": "9.52"}')]


def test_wait_that_cannot_be_recorded_is_not_shortened(tmp_path: Path) -> None:
    url = fresh_sqlite(tmp_path)
    keys_of(tmp_path, url).key_file.chmod(0o644)
    asyncio.run(_declared(create_store(url), 60_000))

    result = run(tmp_path, "ha: {heartbeat_interval_s: 1}", "--database-url", url, "shorten-wait")

    assert result.exit_code == 1
    assert "chmod 600 it" in result.output
    assert asyncio.run(_declared(create_store(url), 1)) == 60_000


@pytest.mark.parametrize("words", [("migrate",), ("--migrate",)], ids=" ".join)
def test_migration_is_on_record_once_the_schema_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(app, "configure_logging", lambda *_: None)
    url = fresh_sqlite(tmp_path)
    secrets = keys_of(tmp_path, url)
    older = to_older_schema(url)

    # What begins to serve then ends at once, as it is told of power controllers that are not there.
    settings = f"power: {{devices_path: {tmp_path / 'missing.yaml'}}}"
    results = [run(tmp_path, settings, "--database-url", url, *words) for _ in range(3)]

    assert {result.exit_code for result in results} == {0 if words == ("migrate",) else 1}
    arguments = json.dumps({"from": older, "to": REVISION})
    assert told_of(url, secrets) == [("limiquantix-controlplane migrate", AuditOutcome.DONE, arguments)]


def test_migration_makes_no_keys_and_so_the_first_one_is_on_no_record(tmp_path: Path) -> None:
    """Whoever makes the tables need not be a control plane: a key made there could be a key that nobody has later."""
    url = empty_sqlite(tmp_path)

    result = run(tmp_path, "", "--database-url", url, "migrate")

    assert (result.exit_code, result.output) == (0, f"database is at revision {REVISION}\n")
    secrets = SecretSettings(key_file=tmp_path / "secret.key")
    assert not secrets.key_file.exists()
    assert told_of(url, secrets) == []


def test_migration_that_cannot_be_recorded_is_done_and_says_so(tmp_path: Path) -> None:
    url = fresh_sqlite(tmp_path)
    secrets = keys_of(tmp_path, url)
    kept = secrets.key_file.rename(tmp_path / "kept.key")
    to_older_schema(url)

    first, second = (run(tmp_path, "", "--database-url", url, "migrate") for _ in range(2))

    assert first.exit_code == 1
    assert f"the database is at revision {REVISION} now" in first.output
    assert f"key file {secrets.key_file} is missing" in first.output
    assert (second.exit_code, second.output) == (0, f"database is at revision {REVISION}\n")
    kept.rename(secrets.key_file)
    assert told_of(url, secrets) == []


async def test_order_of_a_kind_that_nobody_knows_is_refused_as_such(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    with pytest.raises(Unimplemented, match=r"operations of kind vm\.teleport") as refused:
        await world.desk.submit(Order("vm.teleport", vm.id))
    assert refused.value.reason == Reason.NOT_IMPLEMENTED
    assert not await world.store.read(lambda tx: tx.active_resource_ids([vm.id]))
