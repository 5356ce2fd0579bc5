"""The hypervisor contract, for VMs whose guests are told something at their first boot."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from hypervisor.base import Hypervisor
from hypervisor.errors import VmExists
from hypervisor.types import DiskBus, FirstBootMedium, MediumKind, PowerState, VmConfig
from nodedaemon.first_boot_media import iso_image
from tests.contract.conftest import BackendHost

DRIVE_BUSES = (DiskBus.SCSI, DiskBus.SATA)


def media(directory: Path) -> dict[str, FirstBootMedium]:
    """Make a medium of each kind."""
    seed, entry = directory / "seed.iso", directory / "ignition.json"
    seed.write_bytes(iso_image("cidata", {"meta-data": b"instance-id: i\n", "user-data": b"#cloud-config\n"}))
    entry.write_text('{"ignition": {"version": "3.4.0"}}')
    for path in (seed, entry):
        path.chmod(0o600)
    drives = {bus.value: FirstBootMedium(seed, MediumKind.CDROM, "d1", bus) for bus in DRIVE_BUSES}
    return {**drives, "firmware": FirstBootMedium(entry, MediumKind.FIRMWARE, "d1")}


@pytest.fixture(params=[*(bus.value for bus in DRIVE_BUSES), "firmware"])
async def config(request: pytest.FixtureRequest, host: BackendHost, tmp_path: Path) -> VmConfig:
    made = await asyncio.to_thread(media, tmp_path)
    return dataclasses.replace(host.config(), first_boot=made[request.param])


async def test_vm_with_a_first_boot_medium_runs_and_has_no_device_more(backend: Hypervisor, config: VmConfig) -> None:
    await backend.create(config)
    await backend.create(config)
    await backend.start(config.vm_id)
    assert (await backend.status(config.vm_id)).state is PowerState.RUNNING
    assert backend.devices is not None
    found = await backend.devices.list(config.vm_id)
    assert (len(found.disks), found.cdroms) == (len(config.disks), ())


async def test_create_with_other_contents_finds_the_vm_taken(backend: Hypervisor, config: VmConfig) -> None:
    await backend.create(config)
    assert config.first_boot is not None
    other = dataclasses.replace(config, first_boot=dataclasses.replace(config.first_boot, digest="d2"))
    with pytest.raises(VmExists):
        await backend.create(other)
    await backend.reconfigure(other)
    await backend.create(other)
    await backend.reconfigure(dataclasses.replace(config, first_boot=None))
    await backend.start(config.vm_id)
