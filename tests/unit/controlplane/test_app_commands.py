"""The command of the control plane: what a wrong configuration is told, and what is done to the database by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from controlplane import app
from controlplane.operations.desk import Order
from controlplane.state.factory import create_store
from controlplane.state.interface import Store
from limiquantix.errors import Reason, Unimplemented
from tests.support.control_plane_world import World
from tests.support.databases import fresh_sqlite
from tests.support.entry import security_settings


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


async def test_order_of_a_kind_that_nobody_knows_is_refused_as_such(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    with pytest.raises(Unimplemented, match=r"operations of kind vm\.teleport") as refused:
        await world.desk.submit(Order("vm.teleport", vm.id))
    assert refused.value.reason == Reason.NOT_IMPLEMENTED
    assert not await world.store.read(lambda tx: tx.active_resource_ids([vm.id]))
