"""When guests are looked at, and what is told of them; on the mock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from hypervisor.guests import FreezeStatus, GuestInterface
from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.faults import MockFaults
from hypervisor.mock.host import MockSettings
from hypervisor.types import CpuTopology, NicConfig, VmConfig
from limiquantix.compute.v1.node_service_pb2 import VMStatusReport
from nodedaemon.change_count import StateChanges
from nodedaemon.encode import inventory_hash, to_report
from nodedaemon.guest_facts import GuestFacts, reachable_addresses
from nodedaemon.guest_watch import GuestWatch
from nodedaemon.observer import VmObserver
from tests.support.builders import make_id
from tests.support.private_libvirt_host import eventually

DEADLINE_S = 60


@dataclass
class Scene:
    hypervisor: MockHypervisor
    facts: dict[str, GuestFacts]
    changed: list[str] = field(default_factory=list)

    async def start(self) -> str:
        config = VmConfig(make_id(), "web", CpuTopology(), 64, nics=(NicConfig("nic", "52:54:00:00:00:01"),))
        await self.hypervisor.create(config)
        await self.hypervisor.start(config.vm_id)
        return config.vm_id

    async def until(self, is_so: Callable[[], bool]) -> None:
        async def look() -> bool | None:
            return is_so() or None

        await eventually(look, "what the test waits for", DEADLINE_S)

    async def report(self, vm_id: str) -> VMStatusReport:
        observer = VmObserver(self.hypervisor, StateChanges(1), guests=self.facts)
        return to_report(await observer.read(vm_id))


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    hypervisor = MockHypervisor(MockSettings(boot_s=0.1))
    await hypervisor.open()
    found = Scene(hypervisor, {})
    watch = GuestWatch(
        hypervisor, found.facts, found.changed.append, interval_s=0.1, first_look_s=0.02, max_frozen_s=0.3
    )
    hypervisor.subscribe(watch.on_event)
    task = asyncio.create_task(watch.run())
    yield found
    task.cancel()
    await asyncio.wait({task})
    await hypervisor.close()


async def test_guest_that_starts_is_told_of_once_its_agent_answers(scene: Scene) -> None:
    vm_id = await scene.start()
    assert not (await scene.report(vm_id)).HasField("guest")
    await scene.until(lambda: vm_id in scene.facts)
    report = await scene.report(vm_id)
    assert (report.guest.hostname, report.guest.os_name) == ("web", "Simulated Linux")
    assert [address.partition(".")[0] for address in report.ip_addresses] == ["10"]
    assert report.guest.as_of_unix > 0


async def test_guest_that_stays_as_it_is_is_told_of_once(scene: Scene) -> None:
    vm_id = await scene.start()
    await scene.until(lambda: vm_id in scene.facts)
    first = scene.facts[vm_id].as_of_s
    await scene.until(lambda: scene.facts[vm_id].as_of_s > first)
    assert scene.changed == [vm_id]


async def test_guest_is_forgotten_when_it_stops(scene: Scene) -> None:
    vm_id = await scene.start()
    await scene.until(lambda: vm_id in scene.facts)
    await scene.hypervisor.force_stop(vm_id)
    assert scene.facts == {}
    assert not (await scene.report(vm_id)).ip_addresses


async def test_agent_that_is_gone_for_good_leaves_empty_facts(scene: Scene) -> None:
    vm_id = await scene.start()
    await scene.until(lambda: vm_id in scene.facts)
    scene.hypervisor.set_faults(MockFaults(absent_agent_vm_ids=frozenset({vm_id})))
    await scene.until(lambda: scene.facts[vm_id] == GuestFacts())
    report = await scene.report(vm_id)
    assert report.HasField("guest")
    assert (report.guest.agent_version, list(report.ip_addresses)) == ("", [])


@pytest.mark.parametrize(
    "faults",
    [
        lambda vm_id: MockFaults(silent_agent_vm_ids=frozenset({vm_id})),
        lambda vm_id: MockFaults(garbage_agent_vm_ids=frozenset({vm_id})),
    ],
    ids=["silent", "garbage"],
)
async def test_agent_that_cannot_be_understood_leaves_what_was_known_and_the_others_alone(
    scene: Scene, faults: Callable[[str], MockFaults]
) -> None:
    odd = await scene.start()
    await scene.until(lambda: odd in scene.facts)
    scene.hypervisor.set_faults(faults(odd))
    sane = await scene.start()
    await scene.until(lambda: sane in scene.facts)
    assert scene.facts[odd].system.hostname == "web"


async def test_guest_that_nobody_thaws_is_thawed(scene: Scene) -> None:
    vm_id = await scene.start()
    await scene.until(lambda: vm_id in scene.facts)
    agents = scene.hypervisor.guests
    assert agents is not None
    await agents.freeze(vm_id)

    async def look() -> bool | None:
        return await agents.freeze_status(vm_id) is FreezeStatus.THAWED or None

    await eventually(look, "the thaw", DEADLINE_S)


async def test_facts_of_guests_leave_the_digest_of_the_inventory_alone(scene: Scene) -> None:
    vm_id = await scene.start()
    observer = VmObserver(scene.hypervisor, StateChanges(1), guests=scene.facts)
    before = inventory_hash(await observer.read_all())
    await scene.until(lambda: vm_id in scene.facts)
    vms = await observer.read_all()
    assert vms[0].guest is not None
    assert inventory_hash(vms) == before


def test_reachable_addresses_are_those_of_no_loopback_or_link_with_ipv4_first() -> None:
    nics = (
        GuestInterface("lo", "", ("127.0.0.1", "::1")),
        GuestInterface("eth0", "", ("2001:db8::1", "fe80::1", "169.254.0.1", "10.0.0.7")),
        GuestInterface("br0", "", ("10.0.0.7", "192.0.2.1")),
    )
    assert reachable_addresses(nics) == ("10.0.0.7", "192.0.2.1", "2001:db8::1")
