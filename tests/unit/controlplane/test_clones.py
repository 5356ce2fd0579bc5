"""Clones and templates: identities are new, claims are made, and a template outlives what is built upon it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from controlplane.api.checks import CHECKS
from controlplane.domain.documents import virtual_machine
from controlplane.domain.event import EventFilter
from controlplane.domain.node import Capacity
from controlplane.domain.project import Amounts
from controlplane.domain.vm import PowerState, Vm
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import (
    VM_ORIGIN_HOST_DISCOVERED,
    CdromDevice,
    CloudInitConfig,
    CpuConfig,
    DiskDevice,
    DisplayConfig,
    MemoryConfig,
    NetworkInterface,
    ProvisioningConfig,
    TemplateConfig,
    VmSpec,
)
from limiquantix.errors import (
    Aborted,
    AlreadyExists,
    ApiError,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    Reason,
    ResourceExhausted,
)
from limiquantix.rpc.validation import violations_of
from tests.support.access_scene import write
from tests.support.builders import make_folder, make_id, make_project, make_vm
from tests.support.control_plane_world import World, create_request
from tests.support.fake_daemons import unreachable

MIB = 2**20
FULL, LINKED = TemplateConfig.FULL, TemplateConfig.LINKED


def rich_spec() -> VmSpec:
    return VmSpec(
        cpu=CpuConfig(cores=2),
        memory=MemoryConfig(size_mib=512),
        disks=[
            DiskDevice(size_gib=10, boot_index=1),
            DiskDevice(backing_file="templates/d.qcow2", format=DiskDevice.QCOW2),
        ],
        cdroms=[CdromDevice(iso_path="iso/a.iso")],
        nics=[NetworkInterface(bridge="br0")],
        display=DisplayConfig(password="s3cr3t12"),
        provisioning=ProvisioningConfig(cloud_init=CloudInitConfig(user_data="#cloud-config", hostname="first")),
    )


@pytest.fixture
async def source(world: World) -> Vm:
    await world.add_node(vcpus=16)
    return await world.vms.create(
        create_request("source", spec=rich_spec(), labels={"tier": "web"}, description="the first one")
    )


@pytest.fixture
async def template(world: World, source: Vm) -> Vm:
    return await convert(world, source.id)


async def convert(world: World, vm_id: str) -> Vm:
    await world.clones.convert(api.ConvertToTemplateRequest(vm_id=vm_id))
    return await world.vms.get(vm_id)


async def convert_back(world: World, vm_id: str) -> None:
    mask = FieldMask(paths=["spec.template.is_template"])
    await world.vms.update(api.UpdateVMRequest(id=vm_id, update_mask=mask))


async def clone(world: World, source: Vm, name: str = "clone", **fields: Any) -> Vm:
    answer = await world.clones.clone(api.CloneVMRequest(source_vm_id=source.id, name=name, **fields))
    return await world.vms.get(answer.id)


def ids_of(spec: VmSpec) -> set[str]:
    return {device.id for devices in (spec.disks, spec.cdroms, spec.nics) for device in devices}


# -- clones


@pytest.mark.parametrize("clone_type", [FULL, LINKED])
async def test_clone_is_its_source_with_an_identity_of_its_own(
    world: World, template: Vm, clone_type: TemplateConfig.CloneType.ValueType
) -> None:
    found = await clone(world, template, clone_type=clone_type)
    spec, theirs = found.spec, template.spec

    assert found.node_id == template.node_id
    assert (found.name, dict(found.labels), found.description) == ("clone", {"tier": "web"}, "the first one")
    assert (spec.cpu, spec.memory) == (theirs.cpu, theirs.memory)
    assert not ids_of(spec) & ids_of(theirs)
    assert spec.nics[0].mac_address not in ("", theirs.nics[0].mac_address)
    assert [disk.size_gib for disk in spec.disks] == [10, 0]
    assert spec.display.password == ""
    assert spec.template.source_template_id == template.id
    assert not spec.template.is_template
    assert found.linked_to == (template.id if clone_type == LINKED else "")
    sources = [spec.template.disk_sources[disk.id] for disk in spec.disks]
    assert sources == [disk.id for disk in theirs.disks]
    told = world.host_of(found).vms[found.id].spec
    assert [(d.clone_of.vm_id, d.clone_of.disk_id, d.clone_of.linked, d.backing_file) for d in told.disks] == [
        (template.id, disk.id, clone_type == LINKED, "") for disk in theirs.disks
    ]
    assert told.cloud_init == type(told.cloud_init)(user_data="#cloud-config"), (
        "a clone takes its host name of its name"
    )


async def test_clone_of_an_ordinary_vm_is_full_and_stands_alone(world: World, source: Vm) -> None:
    found = await clone(world, source, start_on_create=True)

    assert found.power_state == PowerState.RUNNING
    assert (found.linked_to, found.spec.template.source_vm_id) == ("", source.id)
    await world.vms.delete(api.DeleteVMRequest(id=source.id))


async def test_folder_alone_says_the_project_of_what_is_made_of_a_vm(world: World, template: Vm) -> None:
    there, elsewhere = make_project(quota=Amounts(vm_count=2)), make_project()
    folder, at_home = make_folder(project_id=there.id), make_folder()
    await write(world.store, there, elsewhere, folder, at_home)

    moved = await clone(world, template, "moved", folder_id=folder.id)
    kept = await clone(world, template, "kept", folder_id=at_home.id)
    made = await world.clones.create(
        create_request("made", template_id=template.id, folder_id=folder.id, spec=VmSpec())
    )

    assert (moved.project_id, moved.folder_id) == (there.id, folder.id)
    assert (kept.project_id, kept.folder_id) == (template.project_id, at_home.id)
    assert (made.project_id, made.folder_id) == (there.id, folder.id)
    with pytest.raises(ResourceExhausted) as caught:
        await clone(world, template, "more", folder_id=folder.id)
    assert caught.value.reason == Reason.QUOTA_EXCEEDED
    for fields in ({"folder_id": folder.id, "project_id": elsewhere.id}, {"folder_id": make_id()}):
        with pytest.raises(NotFound) as refused:
            await clone(world, template, "lost", **fields)
        assert refused.value.reason == Reason.FOLDER_NOT_FOUND


async def test_clone_of_a_clone_names_its_own_source(world: World, source: Vm) -> None:
    first = await clone(world, source, "first")
    second = await clone(world, first, "second")
    assert second.spec.template.source_vm_id == first.id
    assert set(second.spec.template.disk_sources.values()) == {disk.id for disk in first.spec.disks}


async def test_clone_takes_the_first_boot_configuration_that_it_is_given(world: World, source: Vm) -> None:
    wanted = ProvisioningConfig(cloud_init=CloudInitConfig(hostname="second"))
    found = await clone(world, source, provisioning=wanted)
    assert found.spec.provisioning == wanted


async def test_clone_says_in_the_log_where_it_came_from(world: World, source: Vm) -> None:
    found = await clone(world, source)
    wanted = EventFilter(resource_id=found.id, types=frozenset({"vm.cloned"}))
    (entry,) = await world.store.read(lambda tx: tx.newest_events(wanted, 10))
    assert entry.event.metadata == {"source_vm_id": source.id, "linked": "false"}


async def test_clone_of_what_runs_is_refused_with_advice(world: World, source: Vm) -> None:
    await world.vms.start(source.id)
    with pytest.raises(FailedPrecondition, match="stop it first") as caught:
        await clone(world, source)
    assert caught.value.reason == Reason.VM_STATE_FORBIDS


async def test_linked_clone_of_an_ordinary_vm_is_refused(world: World, source: Vm) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        await clone(world, source, clone_type=LINKED)
    assert caught.value.reason == Reason.VM_NOT_TEMPLATE


async def test_clone_whose_name_is_taken_is_refused(world: World, source: Vm) -> None:
    with pytest.raises(AlreadyExists):
        await clone(world, source, "source")


async def test_clone_of_nothing_is_refused(world: World) -> None:
    with pytest.raises(NotFound):
        await world.clones.clone(api.CloneVMRequest(source_vm_id=make_id(), name="clone"))


async def test_clone_of_a_vm_whose_disks_are_not_known_is_refused(world: World) -> None:
    node = await world.add_node()
    found = make_vm(node_id=node.id, origin=VM_ORIGIN_HOST_DISCOVERED)
    await world.store.run(lambda tx: tx.insert_vm(found))
    with pytest.raises(FailedPrecondition, match="another tool"):
        await clone(world, found)


async def test_clone_goes_to_its_sources_node_or_says_that_there_is_no_room(world: World) -> None:
    node = await world.add_node(vcpus=3)
    source = await world.create("source", cores=2)
    await world.add_node(vcpus=64)
    with pytest.raises(ResourceExhausted) as caught:
        await clone(world, source)
    assert node.hostname in caught.value.message
    assert await world.allocated(node.id) == Capacity(2, 128 * MIB)


async def test_clone_that_its_host_refuses_leaves_nothing(world: World, source: Vm) -> None:
    before = await world.allocated(source.node_id)
    refusal = FailedPrecondition(Reason.DISK_IMAGE_FAILED, "no")
    world.host_of(source).fail("create_vm", refusal)
    with pytest.raises(FailedPrecondition):
        await clone(world, source)
    assert [vm.id for vm in await world.all_vms()] == [source.id]
    assert await world.allocated(source.node_id) == before
    assert set(world.host_of(source).vms) == {source.id}


async def test_clone_is_refused_while_something_is_done_to_its_source(world: World, source: Vm) -> None:
    gate = world.host_of(source).hold("start_vm")
    starting = asyncio.ensure_future(world.vms.start(source.id))
    await gate.entered.wait()
    with pytest.raises(Aborted) as caught:
        await clone(world, source)
    assert "vm.start" in caught.value.message
    gate.release()
    await starting


async def test_clone_that_is_cancelled_is_undone(world: World, source: Vm) -> None:
    gate = world.host_of(source).hold("create_vm")
    cloning = asyncio.ensure_future(clone(world, source))
    await gate.entered.wait()
    (operation,) = await world.store.read(lambda tx: tx.unfinished_operations((), 10))
    await world.desk.cancel(operation.id, "for the test")
    with pytest.raises(ApiError) as caught:
        await cloning
    assert caught.value.reason == Reason.OPERATION_CANCELLED
    assert [vm.id for vm in await world.all_vms()] == [source.id]


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "a\0", "a\nb", "a" * 300, "", " a", "w\u0435b", "\uff57eb", "we\ufb01", "a\u202eb"],
)
def test_name_of_a_clone_that_could_be_another_one_is_refused(name: str) -> None:
    request = api.CloneVMRequest(source_vm_id=make_id(), name=name)
    found = [*violations_of(request), *CHECKS[api.CloneVMRequest](request)]
    assert [violation.field for violation in found][:1] == ["name"]


@pytest.mark.parametrize("name", ["web-1", "Größe", "数据库", "веб-сервер", "Ώμέγα 3"])
def test_name_of_a_clone_in_any_one_script_is_taken(name: str) -> None:
    assert list(CHECKS[api.CloneVMRequest](api.CloneVMRequest(name=name))) == []


# -- templates


async def test_conversion_is_told_to_the_host_and_to_the_log_and_may_be_repeated(world: World, source: Vm) -> None:
    template = await convert(world, source.id)
    assert template.spec.template.is_template
    assert world.host_of(template).vms[template.id].spec.is_template
    await convert(world, source.id)
    wanted = EventFilter(resource_id=source.id, types=frozenset({"vm.converted"}))
    assert len(await world.store.read(lambda tx: tx.newest_events(wanted, 10))) == 1


async def test_running_vm_cannot_become_a_template(world: World, source: Vm) -> None:
    await world.vms.start(source.id)
    with pytest.raises(FailedPrecondition, match="stop it first"):
        await convert(world, source.id)


async def test_template_can_neither_start_nor_change(world: World, template: Vm) -> None:
    bigger = VmSpec(memory=MemoryConfig(size_mib=1024))
    both = VmSpec(memory=MemoryConfig(size_mib=1024))
    paths = FieldMask(paths=["spec.memory.size_mib", "spec.template.is_template"])
    for attempt in (
        world.vms.start(template.id),
        world.vms.update(api.UpdateVMRequest(id=template.id, spec=bigger)),
        world.vms.update(api.UpdateVMRequest(id=template.id, spec=both, update_mask=paths)),
    ):
        with pytest.raises(FailedPrecondition) as caught:
            await attempt
        assert caught.value.reason == Reason.VM_IS_TEMPLATE
    await world.vms.update(api.UpdateVMRequest(id=template.id, labels={"golden": "yes"}))


async def test_where_a_vm_came_from_cannot_be_rewritten(world: World, source: Vm) -> None:
    forged = VmSpec(template=TemplateConfig(source_template_id=make_id(), clone_type=LINKED))
    with pytest.raises(InvalidArgument, match="only is_template"):
        await world.vms.update(api.UpdateVMRequest(id=source.id, spec=forged))


async def test_template_is_an_ordinary_vm_again_when_nothing_is_built_upon_it(world: World, template: Vm) -> None:
    found = await clone(world, template, clone_type=LINKED)
    with pytest.raises(FailedPrecondition) as caught:
        await convert_back(world, template.id)
    assert caught.value.reason == Reason.TEMPLATE_IN_USE
    assert (await world.vms.get(template.id)).spec.template.is_template
    await world.vms.delete(api.DeleteVMRequest(id=found.id))
    await convert_back(world, template.id)
    await world.vms.start(template.id)


@pytest.mark.parametrize("fields", [{}, {"force": True}, {"remove_from_inventory_only": True}])
async def test_template_stays_as_long_as_something_is_built_upon_it(
    world: World, template: Vm, fields: dict[str, bool]
) -> None:
    linked = await clone(world, template, "linked", clone_type=LINKED)
    await clone(world, template, "full")
    with pytest.raises(FailedPrecondition) as caught:
        await world.vms.delete(api.DeleteVMRequest(id=template.id, **fields))
    assert caught.value.reason == Reason.TEMPLATE_IN_USE
    assert template.id in world.host_of(template).vms
    await world.vms.delete(api.DeleteVMRequest(id=linked.id))
    await world.vms.delete(api.DeleteVMRequest(id=template.id, **fields))
    assert await world.stored(template.id) is None


async def test_of_a_clone_and_a_deletion_at_once_only_one_happens(world: World) -> None:
    await world.add_node(vcpus=64)
    for number in range(10):
        source = await convert(world, (await world.create(f"template{number}")).id)
        outcomes = await asyncio.gather(
            clone(world, source, f"linked{number}", clone_type=LINKED),
            world.vms.delete(api.DeleteVMRequest(id=source.id)),
            return_exceptions=True,
        )
        failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert len(failed) == 1, outcomes
        assert isinstance(failed[0], ApiError)
        is_there = await world.stored(source.id) is not None
        linked = [vm for vm in await world.all_vms() if vm.linked_to == source.id]
        assert bool(linked) == is_there


async def test_clone_of_a_template_that_is_being_deleted_is_refused(world: World, template: Vm) -> None:
    gate = world.host_of(template).hold("delete_vm")
    deleting = asyncio.ensure_future(world.vms.delete(api.DeleteVMRequest(id=template.id)))
    await gate.entered.wait()
    with pytest.raises(Aborted):
        await clone(world, template, clone_type=LINKED)
    gate.release()
    await deleting


# -- creating from a template


async def test_create_from_template_takes_what_the_request_says_before_what_the_template_says(
    world: World, template: Vm
) -> None:
    spec = VmSpec(
        cpu=CpuConfig(cores=4),
        disks=[DiskDevice(size_gib=20), DiskDevice(), DiskDevice(size_gib=5)],
        provisioning=ProvisioningConfig(cloud_init=CloudInitConfig(hostname="new")),
        template=TemplateConfig(clone_type=LINKED),
    )
    request = api.CreateVMRequest(name="made", spec=spec, template_id=template.id, labels={"env": "dev"})
    answer = await world.clones.create(request)
    made = await world.vms.get(answer.id)

    assert (made.spec.cpu.cores, made.spec.memory.size_mib) == (4, 512)
    assert [disk.size_gib for disk in made.spec.disks] == [20, 0, 5]
    assert len(made.spec.template.disk_sources) == 2
    assert dict(made.labels) == {"tier": "web", "env": "dev"}
    assert made.linked_to == template.id
    assert made.spec.nics[0].bridge == "br0"
    assert made.spec.provisioning.cloud_init.hostname == "new"
    assert await world.allocated(made.node_id) == Capacity(6, 1024 * MIB)


async def test_create_from_template_that_would_shrink_a_disk_is_refused_by_field(world: World, template: Vm) -> None:
    request = api.CreateVMRequest(name="made", spec=VmSpec(disks=[DiskDevice(size_gib=9)]), template_id=template.id)
    with pytest.raises(InvalidArgument) as caught:
        await world.clones.create(request)
    assert [violation.field for violation in caught.value.violations] == ["spec.disks[0].size_gib"]


async def test_create_from_what_is_no_template_or_elsewhere_is_refused(world: World, source: Vm) -> None:
    request = api.CreateVMRequest(name="made", spec=VmSpec(), template_id=source.id)
    with pytest.raises(FailedPrecondition) as caught:
        await world.clones.create(request)
    assert caught.value.reason == Reason.VM_NOT_TEMPLATE
    await convert(world, source.id)
    request.node_id = (await world.add_node()).id
    with pytest.raises(FailedPrecondition, match="leave node_id out"):
        await world.clones.create(request)


@pytest.mark.parametrize(
    "template_part",
    [
        TemplateConfig(is_template=True),
        TemplateConfig(source_vm_id=make_id()),
        TemplateConfig(disk_sources={make_id(): make_id()}),
        TemplateConfig(source_template_id=make_id()),
        TemplateConfig(clone_type=LINKED),
    ],
)
def test_create_that_forges_where_a_vm_comes_from_is_refused(template_part: TemplateConfig) -> None:
    spec = VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=128), template=template_part)
    found = list(CHECKS[api.CreateVMRequest](api.CreateVMRequest(name="x", spec=spec)))
    assert len(found) == 1
    assert found[0].field.startswith("spec.template.")


# -- secrets


async def test_first_boot_secrets_are_kept_and_never_shown(world: World, source: Vm) -> None:
    shown = virtual_machine(source)
    assert b"#cloud-config" not in shown.SerializeToString()
    assert shown.spec.provisioning.cloud_init.hostname == "first"
    assert list(shown.spec.provisioning.withheld) == ["cloud_init.user_data"]
    for entry in await world.store.read(lambda tx: tx.newest_events(EventFilter(resource_id=source.id), 100)):
        assert b"#cloud-config" not in entry.document


async def test_spec_that_is_sent_back_as_it_was_read_keeps_its_secrets(world: World, source: Vm) -> None:
    read = virtual_machine(source).spec
    read.provisioning.cloud_init.hostname = "renamed"
    after = await world.vms.update(api.UpdateVMRequest(id=source.id, spec=read, update_mask=FieldMask(paths=["spec"])))
    config = after.spec.provisioning
    assert (config.cloud_init.user_data, config.cloud_init.hostname) == ("#cloud-config", "renamed")
    assert not config.withheld
    assert world.host_of(source).vms[source.id].spec.cloud_init.hostname == "renamed"


async def test_secret_that_is_given_anew_or_left_out_of_the_list_takes_the_old_ones_place(
    world: World, source: Vm
) -> None:
    read = virtual_machine(source).spec.provisioning
    read.cloud_init.user_data = "#!/bin/sh"
    after = await world.vms.update(api.UpdateVMRequest(id=source.id, spec=VmSpec(provisioning=read)))
    assert after.spec.provisioning.cloud_init.user_data == "#!/bin/sh"
    bare = VmSpec(provisioning=ProvisioningConfig(cloud_init=CloudInitConfig(hostname="x")))
    after = await world.vms.update(api.UpdateVMRequest(id=source.id, spec=bare))
    assert after.spec.provisioning.cloud_init == CloudInitConfig(hostname="x")


async def test_first_boot_configuration_of_a_running_vm_stays(world: World, source: Vm) -> None:
    await world.vms.start(source.id)
    bare = VmSpec(provisioning=ProvisioningConfig(cloud_init=CloudInitConfig(hostname="x")))
    with pytest.raises(FailedPrecondition):
        await world.vms.update(api.UpdateVMRequest(id=source.id, spec=bare))


async def test_faults_that_the_host_finds_in_texts_are_named_in_the_callers_words(world: World, source: Vm) -> None:
    theirs = InvalidArgument.from_violations([FieldViolation("spec.cloud_init.meta_data", "must be a YAML map")])
    world.host_of(source).fail("create_vm", theirs)
    with pytest.raises(InvalidArgument) as caught:
        await clone(world, source)
    assert [violation.field for violation in caught.value.violations] == ["spec.provisioning.cloud_init.meta_data"]


async def test_host_that_does_not_answer_leaves_no_clone_behind_for_good(world: World, source: Vm) -> None:
    world.host_of(source).fail("create_vm", unreachable(), after_acting=True)
    with pytest.raises(ApiError):
        await clone(world, source)
    assert set(world.host_of(source).vms) == {source.id}


# -- what a host thinks


@pytest.mark.parametrize("is_template", [True, False])
async def test_host_that_keeps_a_vm_in_another_role_is_told_again(
    world: World, source: Vm, *, is_template: bool
) -> None:
    if is_template:
        await convert(world, source.id)
    host = world.host_of(source)
    host.vms[source.id].spec.is_template = not is_template

    await world.report_everything(source.node_id)
    await world.settle()

    assert host.vms[source.id].spec.is_template == is_template
    assert (await world.vms.get(source.id)).spec.template.is_template == is_template
