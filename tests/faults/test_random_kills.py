"""Real processes and real SIGKILL, at random moments, while callers create, start, stop and delete VMs.

Afterwards every promise that a caller got is kept, every operation has ended, and database, hypervisors and images
agree. `LIMIQUANTIX_FAULT_KILLS` is the number of kills of each test, `LIMIQUANTIX_FAULT_SEED` repeats the moments of
another run, as far as chance is ours.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from limiquantix.compute.v1.vm_pb2 import CpuConfig, DiskDevice, DisplayConfig, MemoryConfig, VmSpec
from tests.faults.conftest import FIGURE
from tests.faults.scale import KILL_COUNTS, RUNS_EVERYTHING
from tests.support import power_button_guest
from tests.support.databases import FRESH_DATABASES
from tests.support.failure_harness_checks import faults_of
from tests.support.failure_harness_load import Caller, Ledger
from tests.support.failure_harness_survey import ReadDomains, libvirt_domains, mock_domains, survey
from tests.support.failure_harness_units import Units, running_units
from tests.support.private_libvirt_host import private_libvirt, skip_unless_private_libvirt
from tests.support.stores import open_store

pytestmark = pytest.mark.timeout(3600)

CALLER_COUNT = 6
QUIET_DEADLINE_S = 90.0
PROGRESS_DEADLINE_S = 15.0
POLL_S = 0.05
SIMULATED = {"backend": "mock", "mock": {"vcpu_count": 64, "memory_mib": 65536, "boot_secs": 0, "shutdown_secs": 0.05}}

RecordProperty = Callable[[str, object], None]


def spec_of(template: str = "") -> VmSpec:
    return VmSpec(
        cpu=CpuConfig(cores=1),
        memory=MemoryConfig(size_mib=16),
        disks=[DiskDevice(size_gib=1, format=DiskDevice.QCOW2, bus=DiskDevice.VIRTIO_BLK, backing_file=template)],
        display=DisplayConfig(type=DisplayConfig.NONE),
    )


async def until_answered(ledger: Ledger, count: int) -> None:
    """Wait until so many more requests were answered, but not for ever: what hinders them may be the next to die."""
    wanted = ledger.answered_count + count
    for _ in range(int(PROGRESS_DEADLINE_S / POLL_S)):
        if ledger.answered_count >= wanted:
            return
        await asyncio.sleep(POLL_S)


async def kill_at_random(units: Units, count: int, chance: random.Random, ledger: Ledger) -> None:
    """Kill one program after the other and start it again, mostly once the last one is back and of use."""
    for _ in range(count):
        await asyncio.sleep(chance.uniform(0.0, 0.5))
        planes, hosts = [plane.unit for plane in units.planes], [node.unit for node in units.nodes]
        victim = chance.choice(chance.choice((planes, hosts)))
        victim.kill()
        await asyncio.sleep(chance.choice((0.0, chance.uniform(0.0, 0.5))))
        victim.start()
        if chance.random() < 0.8:
            await victim.until_up()
            await until_answered(ledger, chance.randrange(12))
    for unit in units.all():
        await unit.until_up()


async def until_quiet(units: Units, read_domains: ReadDomains, ledger: Ledger) -> list[str]:
    """Wait until nothing is wrong any more; returns what still is when time is up."""
    async with open_store(units.database_url) as store:
        deadline = time.monotonic() + QUIET_DEADLINE_S
        while True:
            everything, misplaced = await survey(store, units.nodes, read_domains)
            rows = {vm_id: row.name for vm_id, row in everything.rows.items()}
            found = [*misplaced, *faults_of(everything), *ledger.broken(rows)]
            if not found or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.5)


async def storm(
    units: Units, read_domains: ReadDomains, spec: VmSpec, name: str, record_property: RecordProperty
) -> None:
    """Let callers work and programs die, and check what is left."""
    seed = int(os.environ.get("LIMIQUANTIX_FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
    ledger, is_over, began_s = Ledger(), asyncio.Event(), time.monotonic()
    addresses, entry = [plane.grpc_address for plane in units.planes], await asyncio.to_thread(units.entry)
    callers = [Caller(number, addresses, entry, ledger, seed, spec, 2) for number in range(CALLER_COUNT)]
    async with asyncio.TaskGroup() as group:
        for caller in callers:
            group.create_task(caller.run(is_over))
        try:
            await kill_at_random(units, KILL_COUNTS[name], random.Random(seed), ledger)
            if not RUNS_EVERYTHING:  # of so few kills chance may let none wait for an answer
                await until_answered(ledger, KILL_COUNTS[name] + 1)
        finally:
            is_over.set()
    storm_s = time.monotonic() - began_s
    found = await until_quiet(units, read_domains, ledger)
    kills = {unit.name: unit.kill_count for unit in units.all()}
    figures = (
        f"{name}: {sum(kills.values())} kills {kills} in {storm_s:.0f} s, {ledger.answered_count} requests answered, "
        f"{ledger.repeated_count} repeated, {len(ledger.promises)} VMs; {dict(sorted(ledger.outcomes.items()))}"
    )
    record_property(FIGURE, figures)
    assert not found, f"seed {seed}; {figures}\n" + "\n".join(found)
    assert ledger.answered_count > sum(kills.values())  # it went on all the time


async def test_control_plane_and_simulated_hosts_killed_at_random_lose_nothing(
    tmp_path: Path, record_property: RecordProperty
) -> None:
    url = FRESH_DATABASES["sqlite"](tmp_path)
    async with running_units(tmp_path, url, [SIMULATED, SIMULATED]) as units:
        await storm(units, mock_domains, spec_of(), "mock, SQLite", record_property)


async def test_two_control_planes_and_hosts_killed_at_random_lose_nothing(
    tmp_path: Path, record_property: RecordProperty
) -> None:
    url = FRESH_DATABASES["postgresql"](tmp_path)
    async with running_units(tmp_path, url, [SIMULATED, SIMULATED], plane_count=2) as units:
        await storm(units, mock_domains, spec_of(), "mock, two control planes on PostgreSQL", record_property)


async def test_control_plane_and_host_with_real_vms_killed_at_random_lose_nothing(
    tmp_path: Path, record_property: RecordProperty
) -> None:
    await skip_unless_private_libvirt(tmp_path)
    url = FRESH_DATABASES["sqlite"](tmp_path)
    async with private_libvirt(tmp_path / "libvirt") as libvirt:
        real = {"backend": "libvirt", "libvirt_uri": libvirt.uri, "accelerator": "tcg"}
        async with running_units(tmp_path, url, [real]) as units:
            templates = units.nodes[0].images_dir / "templates"
            templates.mkdir(exist_ok=True)
            power_button_guest.write_disk(templates / "guest.raw")
            spec = spec_of("templates/guest.raw")
            await storm(units, libvirt_domains(libvirt.uri), spec, "libvirt, SQLite", record_property)
