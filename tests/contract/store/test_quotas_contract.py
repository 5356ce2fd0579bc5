"""Quotas are exact, however many ask at once and by however many control planes, on every kind of database."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from controlplane.domain.project import Amounts, Project
from controlplane.domain.vm import Vm
from controlplane.operations.quotas import require_room_to_grow
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.folders import FolderService
from controlplane.services.placement import NodeMemory, place_vm
from controlplane.services.projects import ProjectService
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1 import folder_service_pb2 as folder_api
from limiquantix.compute.v1.vm_pb2 import CpuConfig, MemoryConfig, VmSpec
from limiquantix.errors import ApiError, FailedPrecondition, NotFound, Reason, ResourceExhausted
from tests.support.access_scene import write
from tests.support.builders import GIB, START_OF_TIME, make_folder, make_node, make_project, make_vm
from tests.support.stores import add

ASKED_AT_ONCE = 100


async def create(store: Store, project: Project, *, cores: int = 1, folder_id: str = "") -> Vm:
    draft = make_vm(cores=cores, project_id=project.id, folder_id=folder_id)
    placed = await store.run(lambda tx: place_vm(tx, draft, SchedulerConfig(), NodeMemory()))
    return placed.vm


async def grow(store: Store, vm: Vm, cores: int) -> None:
    async def work(tx: Transaction) -> None:
        before = await tx.get_vm(vm.id)
        assert before is not None
        spec = VmSpec(cpu=CpuConfig(cores=cores), memory=MemoryConfig(size_mib=128))
        after = replace(before, spec=spec)
        await require_room_to_grow(tx, before, after)
        await tx.update_vm(after)

    await store.run(work)


async def cluster(store: Store, quota: Amounts) -> Project:
    project = make_project(quota=quota)
    await write(store, project)
    await add(store, *(make_node(vcpus=400, memory_bytes=400 * GIB) for _ in range(3)))
    return project


async def used(store: Store, project: Project) -> Amounts:
    return await store.read(lambda tx: tx.project_amounts(project.id))


async def test_of_a_hundred_creates_at_once_by_two_control_planes_as_many_are_made_as_fit(
    store: Store, other: Store
) -> None:
    project = await cluster(store, Amounts(vm_count=7))

    outcomes = await asyncio.gather(
        *(create((store, other)[number % 2], project) for number in range(ASKED_AT_ONCE)), return_exceptions=True
    )

    refused = [each for each in outcomes if isinstance(each, BaseException)]
    assert [type(each) for each in refused] == [ResourceExhausted] * (ASKED_AT_ONCE - 7)
    assert {each.reason for each in refused if isinstance(each, ApiError)} == {Reason.QUOTA_EXCEEDED}
    assert (await used(store, project)).vm_count == 7
    nodes = await store.read(lambda tx: tx.all_nodes())
    assert sum(node.allocated.vcpus for node in nodes) == 7


async def test_creates_and_growth_at_once_share_the_quota(store: Store, other: Store) -> None:
    project = await cluster(store, Amounts(vcpus=20))
    vms = [await create(store, project) for _ in range(5)]

    outcomes = await asyncio.gather(
        *(grow(other, vm, 4) for vm in vms),
        *(create(store, project, cores=3) for _ in range(20)),
        return_exceptions=True,
    )

    assert (await used(store, project)).vcpus == 20
    made = [each for each in outcomes if not isinstance(each, BaseException)]
    assert len(made) == 5  # each takes three more
    assert all(isinstance(each, ResourceExhausted) for each in outcomes if isinstance(each, BaseException))


@pytest.mark.parametrize(
    ("quota", "part", "limit"),
    [
        (Amounts(vm_count=1), "vm_count", "1"),
        (Amounts(vcpus=3), "vcpus", "3"),
        (Amounts(memory_bytes=200 * 2**20), "memory_bytes", str(200 * 2**20)),
    ],
)
async def test_refusal_names_quota_used_and_asked(store: Store, quota: Amounts, part: str, limit: str) -> None:
    project = await cluster(store, quota)
    first = await create(store, project, cores=2)

    with pytest.raises(ResourceExhausted) as caught:
        await create(store, project, cores=2)

    takes = {"vm_count": 1, "vcpus": 2, "memory_bytes": first.memory_bytes}[part]
    facts = caught.value.metadata
    assert (facts["quota"], facts["limit"], facts["used"], facts["asked"]) == (part, limit, str(takes), str(takes))


async def test_what_is_deleted_or_shrinks_is_free_again(store: Store) -> None:
    project = await cluster(store, Amounts(vm_count=1, vcpus=2))
    vm = await create(store, project, cores=2)
    await grow(store, vm, 1)
    await grow(store, vm, 2)
    await store.run(lambda tx: tx.delete_vm(vm.id))

    assert await create(store, project, cores=2)


async def test_quota_below_what_is_used_refuses_only_what_grows(store: Store) -> None:
    project = await cluster(store, Amounts())
    vm = await create(store, project, cores=4)
    await store.run(lambda tx: tx.update_project(replace(project, quota=Amounts(vcpus=2))))

    await grow(store, vm, 3)
    with pytest.raises(ResourceExhausted):
        await grow(store, vm, 4)
    with pytest.raises(ResourceExhausted):
        await create(store, project)


async def test_project_that_goes_while_vms_come_has_none_left(store: Store, other: Store) -> None:
    """Either the project goes, and every create is refused, or a VM was there first, and the project stays."""
    project = await cluster(store, Amounts())
    projects = ProjectService(other, lambda: START_OF_TIME)

    outcomes = await asyncio.gather(
        *(create(store, project) for _ in range(10)), projects.delete(project.id), return_exceptions=True
    )

    count = (await used(store, project)).vm_count
    if await store.read(lambda tx: tx.get_project(project.id)) is None:
        assert count == 0
        assert all(isinstance(each, NotFound) for each in outcomes[:-1])
    else:
        assert count
        assert isinstance(outcomes[-1], FailedPrecondition)


async def test_vm_never_comes_to_be_in_a_folder_that_goes(store: Store, other: Store) -> None:
    project = await cluster(store, Amounts())
    folder = make_folder(project_id=project.id)
    await write(store, folder)
    folders = FolderService(other, lambda: START_OF_TIME)

    await asyncio.gather(
        *(create(store, project, folder_id=folder.id) for _ in range(10)),
        folders.delete(folder_api.DeleteFolderRequest(id=folder.id, force=True)),
        return_exceptions=True,
    )

    assert await store.read(lambda tx: tx.get_folder(folder.id)) is None
    assert await store.run(lambda tx: tx.vms_in_folders({folder.id})) == []
