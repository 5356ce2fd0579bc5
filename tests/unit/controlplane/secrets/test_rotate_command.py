"""`secrets rotate`: a new data key, or a new key in the file; everything opens with either afterwards."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest

from controlplane.domain.audit import AuditFilter, AuditOutcome
from controlplane.secrets.keyring import Keyring
from controlplane.secrets.rotate_command import rotate, rotate_file
from controlplane.secrets.settings import SecretSettings
from controlplane.state.engine import StoreLimits
from tests.support.databases import fresh_sqlite
from tests.support.stores import open_store


@pytest.fixture
def settings(tmp_path: Path) -> SecretSettings:
    return SecretSettings(key_file=tmp_path / "secret.key")


def opened(url: str, settings: SecretSettings) -> Keyring:
    """Open the keys as a control plane that starts."""

    async def unlock() -> Keyring:
        keyring = Keyring(settings, lambda: datetime.now(UTC))
        async with open_store(url) as store:
            await keyring.unlock(store)
        return keyring

    return asyncio.run(unlock())


def test_data_key_is_rotated_and_older_values_open(
    tmp_path: Path, settings: SecretSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    url = fresh_sqlite(tmp_path)
    sealed = opened(url, settings).box.seal(b"x", "p", "o")
    rotate(url, StoreLimits(), settings, wait_s=0.0)
    assert "data key 2 is made" in capsys.readouterr().out
    assert opened(url, settings).box.open(sealed, "p", "o") == b"x"


def test_key_file_is_rotated_and_its_older_key_may_go(tmp_path: Path, settings: SecretSettings) -> None:
    url = fresh_sqlite(tmp_path)
    sealed = opened(url, settings).box.seal(b"x", "p", "o")
    rotate_file(url, StoreLimits(), settings)
    lines = settings.key_file.read_text().splitlines(keepends=True)
    assert len([line for line in lines if line.startswith("v1 ")]) == 2
    settings.key_file.write_text("".join(lines[:-1]))
    assert opened(url, settings).box.open(sealed, "p", "o") == b"x"


def test_rotations_are_in_the_trail(tmp_path: Path, settings: SecretSettings) -> None:
    url = fresh_sqlite(tmp_path)
    opened(url, settings)
    rotate(url, StoreLimits(), settings, wait_s=0.0)
    rotate_file(url, StoreLimits(), settings)

    async def read() -> list[tuple[str, AuditOutcome]]:
        async with open_store(url) as store:
            page = await store.read(lambda tx: tx.list_audit(AuditFilter(), None, 10))
        return [(each.entry.method, each.outcome) for each in page.items]

    assert sorted(asyncio.run(read())) == [
        ("limiquantix-controlplane secrets rotate", AuditOutcome.DONE),
        ("limiquantix-controlplane secrets rotate-file", AuditOutcome.DONE),
    ]


def test_rotation_without_the_right_file_is_refused(tmp_path: Path, settings: SecretSettings) -> None:
    url = fresh_sqlite(tmp_path)
    opened(url, settings)
    settings.key_file.unlink()
    with pytest.raises(click.ClickException, match="put it back"):
        rotate(url, StoreLimits(), settings, wait_s=0.0)


@pytest.mark.parametrize("command", [["kms"], ["./kms", "x"]])
def test_key_command_is_named_by_its_whole_path(command: list[str]) -> None:
    with pytest.raises(ValueError, match="absolute path"):
        SecretSettings(kms_command=tuple(command))
