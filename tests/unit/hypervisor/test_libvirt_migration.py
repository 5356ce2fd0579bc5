"""What a migration by libvirt took is kept, however late libvirt tells it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hypervisor.libvirt.migration import LibvirtMigration, PeerSettings
from hypervisor.libvirt.visits import Visits
from hypervisor.migration import MigrationOptions, Phase, Places, Route
from hypervisor.types import PowerState

libvirt = pytest.importorskip("libvirt")

VM = "5f7c1a52-0b3e-4d0c-9a56-2f1f0c9e4b11"
HERE = Places(Path("/images"), Path("/console"))
OPTIONS = MigrationOptions(Route("qemu+tcp://there/system", HERE, HERE))
LATE_S = 0.2


class Host:
    """A connection with one domain, whose event loop tells of a job's end some time after the call returned."""

    def __init__(self) -> None:
        self._callbacks: dict[int, Callable[[Any, Any, Any, Any], None]] = {}

    def domainEventRegisterAny(self, _domain: object, _event: int, callback: Any, _opaque: object) -> int:
        self._callbacks[7] = callback
        return 7

    def domainEventDeregisterAny(self, number: int) -> None:
        del self._callbacks[number]

    def getVersion(self) -> int:
        return 8_000_000

    def snapshotNum(self, _flags: int) -> int:
        return 0

    def listAllCheckpoints(self, _flags: int) -> list[object]:
        return []

    def XMLDesc(self, _flags: int) -> str:
        return "<domain/>"

    def jobStats(self) -> dict[str, int]:
        return {"type": libvirt.VIR_DOMAIN_JOB_NONE}

    def migrateToURI3(self, _uri: str, _parameters: object, flags: int) -> None:
        if not flags & libvirt.VIR_MIGRATE_OFFLINE:
            threading.Timer(LATE_S, self._tell).start()

    def _tell(self) -> None:
        for callback in self._callbacks.values():
            callback(self, self, {"data_processed": 4096, "downtime": 12}, None)


class Connection:
    library = libvirt

    def __init__(self, host: Host) -> None:
        self._host = host

    async def run(self, work: Callable[[Any], Any], **_: object) -> Any:
        return work(self._host)

    def is_alive(self, _connection: object) -> bool:
        return True


def migration_of(state: PowerState) -> LibvirtMigration:
    host = Host()
    operations = SimpleNamespace(find=lambda *_: host, state=lambda _: state, forget=lambda _: None)
    visits = SimpleNamespace(connection=Connection(host), operations=operations)
    return LibvirtMigration(cast("Visits", visits), PeerSettings("qemu+tcp://here/system"))


async def test_numbers_that_come_after_the_answer_are_kept() -> None:
    progress = await migration_of(PowerState.RUNNING).send(VM, OPTIONS)

    assert (progress.phase, progress.transferred_bytes, progress.downtime_ms) == (Phase.COMPLETE, 4096, 12)


async def test_a_definition_alone_has_no_numbers() -> None:
    progress = await migration_of(PowerState.STOPPED).send(VM, OPTIONS)

    assert (progress.phase, progress.transferred_bytes) == (Phase.COMPLETE, 0)
