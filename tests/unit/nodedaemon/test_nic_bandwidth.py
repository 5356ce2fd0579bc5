"""When network cards get their ceilings; that these hold is seen with a real guest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from hypervisor.mock.backend import MockHypervisor
from hypervisor.types import CpuTopology, EventKind, NicBandwidth, NicConfig, VmConfig, VmEvent, VmStatus
from limiquantix.errors import FailedPrecondition
from nodedaemon.nic_bandwidth import NicBandwidths

VM_ID, NIC_ID = "5f7c1a52-0b3e-4d0c-9a56-2f1f0c9e4b11", "6f7c1a52-0b3e-4d0c-9a56-2f1f0c9e4b11"
LIMITED = NicConfig(NIC_ID, "52:54:00:00:00:01", bridge="br0", bandwidth=NicBandwidth(1000, 1000))


class ListedHypervisor(MockHypervisor):
    """The mock, of which one can wait until its VMs were listed so often."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 0
        self._listed = asyncio.Condition()

    async def list(self) -> Sequence[VmStatus]:
        """See `Hypervisor`."""
        async with self._listed:
            self._count += 1
            self._listed.notify_all()
        return await super().list()

    async def until_listed(self, count: int) -> None:
        """Wait for that."""
        async with asyncio.timeout(60), self._listed:
            await self._listed.wait_for(lambda: self._count >= count)


@pytest.fixture
async def hypervisor() -> AsyncIterator[ListedHypervisor]:
    """A host with a running VM whose card is limited, and plugged into an interface that does not exist."""
    mock = ListedHypervisor()
    await mock.open()
    await mock.create(VmConfig(VM_ID, "web", CpuTopology(), 64, nics=(LIMITED,)))
    await mock.start(VM_ID)
    yield mock
    await mock.close()


async def test_card_without_an_interface_needs_nothing(hypervisor: MockHypervisor) -> None:
    await NicBandwidths(hypervisor).require(VM_ID)
    assert hypervisor.devices is not None
    assert len((await hypervisor.devices.list(VM_ID)).nics) == 1


async def test_interface_that_the_tools_do_not_know_is_a_failed_precondition(
    hypervisor: MockHypervisor, tmp_path: Path
) -> None:
    (tmp_path / "mock0").mkdir()
    with pytest.raises(FailedPrecondition) as caught:
        await NicBandwidths(hypervisor, tmp_path).require(VM_ID)
    assert caught.value.reason == "HOST_LACKS"
    assert VM_ID in caught.value.message


async def test_background_work_goes_on_after_an_interface_that_cannot_be_limited(
    hypervisor: ListedHypervisor, tmp_path: Path
) -> None:
    (tmp_path / "mock0").mkdir()
    (tmp_path / "lq-gone").mkdir()
    bandwidths = NicBandwidths(hypervisor, tmp_path)
    running = asyncio.ensure_future(bandwidths.run())
    await hypervisor.until_listed(1)
    for kind in (EventKind.STARTED, EventKind.STOPPED, EventKind.DEFINED, EventKind.RESYNC):
        bandwidths.on_event(VmEvent(kind, VM_ID))
    await hypervisor.until_listed(2)
    assert not running.done()
    running.cancel()
