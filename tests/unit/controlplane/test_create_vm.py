"""Creating a VM: placed, defined and recorded, or refused with nothing left anywhere."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from controlplane.domain.event import EventFilter, EventType
from controlplane.domain.node import Capacity
from controlplane.domain.operation import OperationFilter
from controlplane.domain.project import Amounts
from controlplane.domain.vm import DEFAULT_PROJECT_ID, PowerState
from controlplane.operations.desk import Caller
from controlplane.operations.worker import WorkerConfig
from controlplane.services.folders import FolderService
from controlplane.state.interface import Store
from limiquantix.compute.v1 import folder_service_pb2 as folder_api
from limiquantix.compute.v1.vm_pb2 import (
    CpuConfig,
    DiskDevice,
    MemoryConfig,
    NetworkInterface,
    PlacementPolicy,
    VmSpec,
)
from limiquantix.compute.v1.vm_service_pb2 import DeleteVMRequest
from limiquantix.errors import (
    AlreadyExists,
    ApiError,
    Code,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    Internal,
    InvalidArgument,
    NotFound,
    Reason,
    ResourceExhausted,
    Unavailable,
)
from tests.support.access_scene import write
from tests.support.builders import GIB, make_folder, make_id, make_project
from tests.support.control_plane_world import World, create_request
from tests.support.fake_daemons import STOPPED, Gate, unreachable

NOTHING = Capacity(0, 0)


async def assert_nothing_left(world: World, node_id: str) -> None:
    assert await world.all_vms() == []
    assert await world.allocated(node_id) == NOTHING
    assert world.daemons.of(node_id).vms == {}


async def test_created_vm_is_stopped_placed_and_claimed(world: World) -> None:
    node = await world.add_node()

    vm = await world.create("t", cores=2, memory_mib=512)

    assert vm.power_state == PowerState.STOPPED
    assert (vm.node_id, vm.project_id, vm.error_message) == (node.id, DEFAULT_PROJECT_ID, "")
    assert await world.stored(vm.id) == vm
    assert await world.allocated(node.id) == Capacity(2, 512 * 2**20)
    assert world.host_of(vm).vms[vm.id].state == STOPPED


async def test_created_vm_with_start_is_running(world: World) -> None:
    await world.add_node()

    vm = await world.create(start=True)

    assert vm.power_state == PowerState.RUNNING
    assert world.host_of(vm).methods(vm.id) == ["create_vm", "start_vm", "vm_status"]


async def test_devices_without_ids_get_ids_and_mac_addresses(world: World) -> None:
    await world.add_node()
    spec = VmSpec(
        cpu=CpuConfig(cores=1),
        memory=MemoryConfig(size_mib=128),
        disks=[DiskDevice(size_gib=1), DiskDevice(size_gib=2)],
        nics=[NetworkInterface(bridge="virbr0"), NetworkInterface(mac_address="52:54:00:AB:CD:EF")],
    )

    vm = await world.create(spec=spec)

    ids = [disk.id for disk in vm.spec.disks] + [nic.id for nic in vm.spec.nics]
    assert all(ids)
    assert len(set(ids)) == 4
    assert vm.spec.nics[0].mac_address.startswith("52:54:00:")
    assert vm.spec.nics[1].mac_address == "52:54:00:ab:cd:ef"
    assert [disk.id for disk in world.host_of(vm).vms[vm.id].spec.disks] == ids[:2]
    assert spec.disks[0].id == "", "the caller's own message must not be changed"


REFUSED = FailedPrecondition(Reason.HYPERVISOR_REFUSED, "no such machine type")
BAD_PATH = InvalidArgument.from_violations([FieldViolation("spec.cdroms[0].iso_path", "is outside the storage path")])
TIMED_OUT = DeadlineExceeded(Reason.DEADLINE_EXCEEDED, "node h did not answer in time")


@pytest.mark.parametrize("after_acting", [False, True], ids=["before acting", "answer lost"])
@pytest.mark.parametrize("method", ["create_vm", "start_vm", "vm_status"])
@pytest.mark.parametrize("error", [REFUSED, BAD_PATH, TIMED_OUT, unreachable()], ids=lambda error: error.reason)
async def test_failed_create_leaves_nothing_at_any_step(
    world: World, method: str, error: ApiError, after_acting: bool
) -> None:
    node = await world.add_node()
    host = world.daemons.of(node.id)
    host.fail(method, error, after_acting=after_acting)
    if (method, error.code, after_acting) == ("start_vm", Code.UNAVAILABLE, True):
        # Only the answer is lost: asked again, the host says that the VM runs.
        assert (await world.create(start=True)).power_state == PowerState.RUNNING
        return

    with pytest.raises(type(error)) as caught:
        await world.create(start=True)

    assert (caught.value.reason, caught.value.message) == (error.reason, error.message)
    assert caught.value.violations == error.violations
    await assert_nothing_left(world, node.id)
    assert "delete_vm" in [called for called, _ in host.calls]


async def test_failed_create_with_daemon_gone_for_good_leaves_no_row_and_no_claim(world: World) -> None:
    node = await world.add_node()
    world.daemons.of(node.id).fail("*", unreachable())

    with pytest.raises(Unavailable) as caught:
        await world.create()

    assert caught.value.reason == Reason.NODE_UNREACHABLE
    await assert_nothing_left(world, node.id)


async def test_failed_create_on_node_without_agent_leaves_nothing(world: World) -> None:
    node = await world.add_node(agent_endpoint="")

    with pytest.raises(Unavailable, match="register again"):
        await world.create()

    await assert_nothing_left(world, node.id)


async def test_failed_create_by_a_defect_of_ours_leaves_nothing(world: World) -> None:
    node = await world.add_node()
    world.daemons.of(node.id).fail("create_vm", ZeroDivisionError("a defect"))

    with pytest.raises(Internal, match="correlation id") as caught:
        await world.create()

    assert "a defect" not in caught.value.message
    await assert_nothing_left(world, node.id)


async def test_daemon_fault_names_fields_as_the_caller_wrote_them(world: World) -> None:
    node = await world.add_node()
    theirs = [FieldViolation("spec.direct_boot.kernel_path", "outside"), FieldViolation("spec.cpu_model", "unknown")]
    world.daemons.of(node.id).fail("create_vm", InvalidArgument.from_violations(theirs))

    with pytest.raises(InvalidArgument) as caught:
        await world.create()

    assert [v.field for v in caught.value.violations] == ["spec.boot.direct_boot.kernel_path", "spec.cpu.model"]


class _Fading:
    """A store whose writes fail from a moment on, as on a full disk."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.is_gone = False
        self.refused = asyncio.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def run(self, work):  # type: ignore[no-untyped-def]
        if self.is_gone:
            self.refused.set()
            raise Unavailable(Reason.STATE_UNAVAILABLE, "the database does not answer: its disk is full")
        return await self._store.run(work)


async def test_failed_create_is_undone_when_a_database_that_went_away_is_back(world: World) -> None:
    node = await world.add_node()
    host = world.daemons.of(node.id)
    fading = _Fading(world.store)
    world.store = fading  # type: ignore[assignment]
    world.worker_config = WorkerConfig(store_retry_s=0.01)
    world.restart()
    host.fail("create_vm", REFUSED)
    gate = host.hold("create_vm")
    creation = asyncio.ensure_future(world.create())
    await gate.entered.wait()
    fading.is_gone = True
    gate.release()
    async with asyncio.timeout(60):
        await fading.refused.wait()
    fading.is_gone = False

    with pytest.raises(FailedPrecondition, match="no such machine type"):
        await creation
    await assert_nothing_left(world, node.id)


async def _held_creation(world: World, node_id: str) -> tuple[asyncio.Future[object], Gate]:
    gate = world.daemons.of(node_id).hold("create_vm")
    creation: asyncio.Future[object] = asyncio.ensure_future(world.create("held"))
    await gate.entered.wait()
    return creation, gate


async def test_create_whose_caller_goes_away_is_finished_anyway(world: World) -> None:
    node = await world.add_node()
    creation, gate = await _held_creation(world, node.id)

    creation.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await creation
    gate.release()
    await world.settle()

    (vm,) = await world.all_vms()
    assert vm.power_state == PowerState.STOPPED
    assert await world.allocated(node.id) == Capacity(1, 128 * 2**20)


async def test_create_whose_caller_goes_away_is_undone_when_it_fails(world: World) -> None:
    node = await world.add_node()
    world.daemons.of(node.id).fail("create_vm", REFUSED, after_acting=True)
    creation, gate = await _held_creation(world, node.id)

    creation.cancel()
    gate.release()
    await world.settle()

    await assert_nothing_left(world, node.id)
    assert creation.cancelled()


async def test_create_cut_off_at_shutdown_is_finished_by_the_next_process(world: World) -> None:
    node = await world.add_node()
    creation, gate = await _held_creation(world, node.id)

    await world.worker.stop(0)
    creation.cancel()
    gate.release()
    world.restart()
    await world.take_over()
    await world.settle()

    (vm,) = await world.all_vms()
    assert vm.power_state == PowerState.STOPPED
    assert await world.allocated(node.id) == Capacity(1, 128 * 2**20)


async def test_vm_being_created_is_visible_as_provisioning(world: World) -> None:
    node = await world.add_node()
    creation, gate = await _held_creation(world, node.id)

    (vm,) = await world.all_vms()
    assert vm.power_state == PowerState.PROVISIONING
    assert vm.node_id == node.id
    gate.release()
    await creation


# -- names


async def test_name_taken_is_refused_and_the_claim_returned(world: World) -> None:
    node = await world.add_node()
    first = await world.create("same")

    with pytest.raises(AlreadyExists) as caught:
        await world.create("same", cores=4)

    assert caught.value.reason == Reason.VM_NAME_TAKEN
    assert await world.allocated(node.id) == Capacity(1, 128 * 2**20)
    assert [vm.id for vm in await world.all_vms()] == [first.id]


async def test_name_is_free_in_another_project_and_after_deletion(world: World) -> None:
    await world.add_node()
    first = await world.create("same")
    project = make_project()
    await world.store.run(lambda tx: tx.insert_project(project))

    await world.vms.create(create_request("same", project_id=project.id))
    await world.vms.delete(_delete(first.id))
    await world.create("same")

    assert len(await world.all_vms()) == 2


async def test_folder_alone_says_the_project(world: World) -> None:
    await world.add_node()
    project = make_project(quota=Amounts(vm_count=1))
    folder = make_folder(project_id=project.id)
    await write(world.store, project, folder)
    for_default = make_folder()
    await write(world.store, for_default)

    would_be = await world.vms.service.create(create_request("a", folder_id=folder.id, validate_only=True))
    first = await world.vms.create(create_request("a", folder_id=folder.id))
    there = await world.vms.create(create_request("a", folder_id=for_default.id))

    assert (would_be.project_id, would_be.folder_id) == (project.id, folder.id)
    assert (first.project_id, first.folder_id) == (project.id, folder.id)
    assert (there.project_id, there.folder_id) == (DEFAULT_PROJECT_ID, for_default.id)
    (operation, *_) = (await world.desk.list(OperationFilter(resource_id=first.id), None, 10)).items
    assert operation.project_id == project.id
    with pytest.raises(ResourceExhausted) as caught:
        await world.vms.create(create_request("b", folder_id=folder.id))
    assert caught.value.reason == Reason.QUOTA_EXCEEDED
    assert caught.value.metadata["project_id"] == project.id


async def test_folder_of_another_project_than_the_one_that_is_said_is_not_found_like_one_that_is_not_there(
    world: World,
) -> None:
    await world.add_node()
    project = make_project()
    folder = make_folder(project_id=project.id)
    await write(world.store, project, folder)

    for folder_id, project_id in ((folder.id, DEFAULT_PROJECT_ID), (make_id(), project.id), (make_id(), "")):
        with pytest.raises(NotFound) as caught:
            await world.vms.create(create_request("t", folder_id=folder_id, project_id=project_id))
        assert caught.value.reason == Reason.FOLDER_NOT_FOUND
    assert await world.all_vms() == []


async def test_request_that_comes_again_is_answered_though_its_folder_is_gone(world: World) -> None:
    await world.add_node()
    project = make_project()
    folder = make_folder(project_id=project.id)
    await write(world.store, project, folder)
    request, caller = create_request("t", folder_id=folder.id), Caller("ann", "r-1", "digest")
    first = await world.vms.service.create(request, caller)
    folders = FolderService(world.store, world.clock, nothing)
    await folders.delete(folder_api.DeleteFolderRequest(id=folder.id, force=True))

    assert (await world.vms.service.create(request, caller)).id == first.id


async def nothing() -> None:
    """There is nothing to refresh."""


async def test_same_name_at_the_same_moment_makes_one_vm(world: World) -> None:
    node = await world.add_node()

    outcomes = await asyncio.gather(*(world.create("same") for _ in range(8)), return_exceptions=True)

    assert sum(isinstance(outcome, AlreadyExists) for outcome in outcomes) == 7
    assert await world.allocated(node.id) == Capacity(1, 128 * 2**20)


# -- placement


async def test_full_nodes_refuse_with_one_reason_each(world: World) -> None:
    await world.add_node(hostname="small", vcpus=1)
    await world.add_node(hostname="thin", vcpus=8, memory_bytes=GIB)
    await world.add_node(hostname="held", spec=None, phase=4)

    with pytest.raises(ResourceExhausted) as caught:
        await world.create(cores=4, memory_mib=4096)

    assert caught.value.reason == Reason.NO_NODE_FITS
    assert set(caught.value.metadata) == {"node.small", "node.thin", "node.held"}
    assert "cpu" in caught.value.metadata["node.small"]
    assert "memory" in caught.value.metadata["node.thin"]
    assert "MAINTENANCE" in caught.value.metadata["node.held"]
    assert "3 nodes" in caught.value.message
    assert await world.all_vms() == []


async def test_no_node_at_all_is_said_so(world: World) -> None:
    with pytest.raises(ResourceExhausted, match="there are no nodes"):
        await world.create()


async def test_parallel_creates_fill_the_room_exactly(world: World) -> None:
    nodes = [await world.add_node(vcpus=8), await world.add_node(vcpus=8)]

    outcomes = await asyncio.gather(*(world.create(f"vm-{n}") for n in range(32)), return_exceptions=True)

    assert sum(isinstance(outcome, ResourceExhausted) for outcome in outcomes) == 16
    assert [(await world.allocated(node.id)).vcpus for node in nodes] == [8, 8]
    assert len(await world.all_vms()) == 16


async def test_stopped_vm_keeps_its_claim(world: World) -> None:
    await world.add_node(vcpus=4)
    vm = await world.create("first", cores=4)
    assert vm.power_state == PowerState.STOPPED

    with pytest.raises(ResourceExhausted, match="0"):
        await world.create("second")


async def test_sockets_and_threads_count_as_vcpus(world: World) -> None:
    node = await world.add_node(vcpus=16)
    spec = VmSpec(cpu=CpuConfig(cores=2, sockets=2, threads_per_core=2), memory=MemoryConfig(size_mib=128))

    await world.create(spec=spec)

    assert (await world.allocated(node.id)).vcpus == 8


async def test_anti_affinity_keeps_vms_apart_until_no_node_is_left(world: World) -> None:
    await world.add_node()
    await world.add_node()
    first = await world.create("first")
    apart = _placed_by(PlacementPolicy(anti_affinity_vms=[first.id]))
    second = await world.create("second", spec=apart)
    assert second.node_id != first.node_id

    with pytest.raises(ResourceExhausted, match="must not run beside"):
        await world.create("third", spec=_placed_by(PlacementPolicy(anti_affinity_vms=[first.id, second.id])))


async def test_affinity_puts_vms_together(world: World) -> None:
    for _ in range(4):
        await world.add_node()
    first = await world.create("first")

    second = await world.create("second", spec=_placed_by(PlacementPolicy(affinity_vms=[first.id])))

    assert second.node_id == first.node_id


async def test_pinned_node_is_used(world: World) -> None:
    nodes = [await world.add_node() for _ in range(3)]

    for node in nodes:
        vm = await world.vms.create(create_request(f"on-{node.hostname}", node_id=node.id))
        assert vm.node_id == node.id


async def test_pinned_node_that_is_full_refuses_though_others_have_room(world: World) -> None:
    full = await world.add_node(vcpus=1)
    await world.add_node(vcpus=64)

    with pytest.raises(ResourceExhausted) as caught:
        await world.vms.create(create_request(cores=2, node_id=full.id))

    assert len(caught.value.metadata) == 2


async def test_pinned_node_that_is_unknown_is_not_found(world: World) -> None:
    await world.add_node()

    with pytest.raises(NotFound) as caught:
        await world.vms.create(create_request(node_id=make_id()))

    assert caught.value.reason == Reason.NODE_NOT_FOUND
    assert await world.all_vms() == []


def _placed_by(policy: PlacementPolicy) -> VmSpec:
    return VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=128), placement=policy)


def _delete(vm_id: str) -> DeleteVMRequest:
    return DeleteVMRequest(id=vm_id)


async def test_log_says_who_asked_for_which_vm(world: World) -> None:
    await world.add_node()
    answer = await world.vms.service.create(create_request("web"), Caller(principal="ann"))

    events = await world.store.read(lambda tx: tx.newest_events(EventFilter(resource_id=answer.id), 10))

    assert events[-1].event.type == EventType.VM_CREATED
    assert (events[-1].event.message, events[-1].event.actor) == ("VM web was asked for", "ann")
