"""Clones, templates and first-boot media on one host, by the real qemu-img, on the mock."""

from __future__ import annotations

import asyncio
import shutil
import stat
import subprocess
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hypervisor.mock.faults import Failure, Fault, MockFaults, Operation
from limiquantix.errors import AlreadyExists, ApiError, FailedPrecondition, InvalidArgument, Reason
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.commands import Commands
from tests.support.node_daemon_parts import NodeDaemonParts, node_daemon_parts
from tests.support.private_libvirt_host import eventually

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")

MIB = 2**20
GIB = 2**30
RAW, QCOW2 = pb.DISK_FORMAT_RAW, pb.DISK_FORMAT_QCOW2


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[NodeDaemonParts]:
    async with node_daemon_parts(tmp_path) as parts:
        yield parts


def new_id() -> str:
    return str(uuid.uuid4())


def spec_of(*disks: pb.DiskSpec, is_template: bool = False) -> pb.VMSpec:
    return pb.VMSpec(cpu_cores=1, memory_mib=64, disks=disks, is_template=is_template)


async def make(host: NodeDaemonParts, spec: pb.VMSpec, generation: int = 0) -> str:
    vm_id = new_id()
    await host.servicer.CreateVM(
        pb.CreateVMOnNodeRequest(vm_id=vm_id, name="web", spec=spec, generation=generation), None
    )
    return vm_id


async def reconfigure(host: NodeDaemonParts, vm_id: str, spec: pb.VMSpec) -> None:
    await host.servicer.ReconfigureVM(pb.ReconfigureVMRequest(vm_id=vm_id, name="web", spec=spec), None)


async def delete(host: NodeDaemonParts, vm_id: str) -> None:
    await host.servicer.DeleteVM(pb.VMIdRequest(vm_id=vm_id), None)


async def source_of(host: NodeDaemonParts, disk_format: pb.DiskFormat.ValueType = QCOW2) -> pb.CloneSource:
    """Make a VM with one disk of 1 GiB that has something on it."""
    disk = pb.DiskSpec(id=new_id(), size_gib=1, format=disk_format)
    vm_id = await make(host, spec_of(disk))
    write(image_of(host, vm_id, disk.id, disk_format), disk_format, 0x5A)
    return pb.CloneSource(vm_id=vm_id, disk_id=disk.id)


def write(path: Path, disk_format: pb.DiskFormat.ValueType, pattern: int, offset_mib: int = 300) -> None:
    words = ["qemu-io", "-f", suffix(disk_format), "-c", f"write -P {pattern} {offset_mib}M 1M", str(path)]
    subprocess.run(words, check=True, capture_output=True)


def information(path: Path) -> bytes:
    words = ["qemu-img", "info", "-f", path.suffix[1:], str(path)]
    return subprocess.run(words, check=True, capture_output=True).stdout


def has(path: Path, pattern: int, offset_mib: int = 300) -> bool:
    words = ["qemu-io", "-r", "-f", path.suffix[1:], "-c", f"read -P {pattern} {offset_mib}M 1M", str(path)]
    return b"verification failed" not in subprocess.run(words, check=True, capture_output=True).stdout


def suffix(disk_format: pb.DiskFormat.ValueType) -> str:
    return {QCOW2: "qcow2", RAW: "raw"}[disk_format]


def image_of(host: NodeDaemonParts, vm_id: str, disk_id: str, disk_format: pb.DiskFormat.ValueType = QCOW2) -> Path:
    return host.paths.vm_dir(vm_id) / f"{disk_id}.{suffix(disk_format)}"


async def templated(host: NodeDaemonParts, source: pb.CloneSource, *, is_template: bool = True) -> None:
    disk_format = RAW if image_of(host, source.vm_id, source.disk_id, RAW).exists() else QCOW2
    disk = pb.DiskSpec(id=source.disk_id, size_gib=1, format=disk_format)
    await reconfigure(host, source.vm_id, spec_of(disk, is_template=is_template))


def linked(source: pb.CloneSource) -> pb.CloneSource:
    return pb.CloneSource(vm_id=source.vm_id, disk_id=source.disk_id, linked=True)


# -- full clones


@pytest.mark.parametrize("disk_format", [QCOW2, RAW])
@pytest.mark.parametrize(("size_gib", "expected_gib"), [(0, 1), (3, 3)])
async def test_full_clone_has_the_sources_contents_and_stands_alone(
    host: NodeDaemonParts, disk_format: pb.DiskFormat.ValueType, size_gib: int, expected_gib: int
) -> None:
    source = await source_of(host, disk_format)
    disk = pb.DiskSpec(id=new_id(), size_gib=size_gib, format=disk_format, clone_of=source)
    clone_id = await make(host, spec_of(disk))
    original = image_of(host, source.vm_id, source.disk_id, disk_format)
    copy = image_of(host, clone_id, disk.id, disk_format)

    assert has(copy, 0x5A)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert copy.stat().st_blocks * 512 < 64 * MIB, "what is empty takes no room"
    write(copy, disk_format, 0x77)
    assert has(original, 0x5A)
    info = information(copy)
    assert f"({expected_gib * GIB} bytes)".encode() in info
    assert b"backing file" not in info

    await delete(host, source.vm_id)
    await reconfigure(host, clone_id, spec_of(disk))
    assert has(copy, 0x77), "a clone needs its source no more"


async def test_full_clone_asked_for_twice_is_made_once(host: NodeDaemonParts) -> None:
    source = await source_of(host)
    disk = pb.DiskSpec(id=new_id(), clone_of=source)
    request = pb.CreateVMOnNodeRequest(vm_id=new_id(), name="web", spec=spec_of(disk))
    first = await host.servicer.CreateVM(request, None)
    before = image_of(host, request.vm_id, disk.id).stat()
    second = await host.servicer.CreateVM(request, None)
    assert (first.created, second.created) == (True, False)
    assert image_of(host, request.vm_id, disk.id).stat().st_mtime_ns == before.st_mtime_ns


async def test_clone_of_a_running_vm_is_refused_and_leaves_nothing(host: NodeDaemonParts) -> None:
    source = await source_of(host)
    await host.start(source.vm_id)
    with pytest.raises(FailedPrecondition, match="stop it first"):
        await make(host, spec_of(pb.DiskSpec(id=new_id(), clone_of=source)))
    assert [path.name for path in host.paths.root.iterdir()] == [source.vm_id]


async def test_clone_of_a_disk_that_is_not_there_is_refused_by_field(host: NodeDaemonParts) -> None:
    source = pb.CloneSource(vm_id=new_id(), disk_id=new_id())
    with pytest.raises(InvalidArgument) as caught:
        await make(host, spec_of(pb.DiskSpec(id=new_id(), clone_of=source)))
    assert [violation.field for violation in caught.value.violations] == ["spec.disks[0].clone_of"]


async def test_clone_that_would_shrink_a_disk_is_refused(host: NodeDaemonParts) -> None:
    disk = pb.DiskSpec(id=new_id(), size_gib=2)
    source_id = await make(host, spec_of(disk))
    source = pb.CloneSource(vm_id=source_id, disk_id=disk.id)
    with pytest.raises(InvalidArgument, match="smaller than the source"):
        await make(host, spec_of(pb.DiskSpec(id=new_id(), size_gib=1, clone_of=source)))


async def test_clone_whose_definition_is_refused_leaves_nothing(host: NodeDaemonParts) -> None:
    source = await source_of(host)
    host.hypervisor.set_faults(MockFaults((Fault(Operation.CREATE, Failure.REFUSED),)))
    with pytest.raises(ApiError):
        await make(host, spec_of(pb.DiskSpec(id=new_id(), clone_of=source)))
    assert [path.name for path in host.paths.root.iterdir()] == [source.vm_id]


async def test_source_refuses_changes_while_it_is_copied_and_takes_them_afterwards(
    host: NodeDaemonParts, tmp_path: Path
) -> None:
    source = await source_of(host)
    commands = host.commands
    async with commands.holding(source.vm_id, deadline_s=60, refuses_others=True):
        with pytest.raises(FailedPrecondition) as caught:
            await host.start(source.vm_id)
        assert caught.value.reason == Reason.VM_BEING_CLONED
    await host.start(source.vm_id)
    assert (await host.status(source.vm_id)).state == pb.POWER_STATE_RUNNING


async def test_holding_waits_for_earlier_changes_and_keeps_later_ones_waiting(host: NodeDaemonParts) -> None:
    source = await source_of(host)
    commands = host.commands
    async with commands.holding(source.vm_id, deadline_s=60, refuses_others=False):
        starting = asyncio.ensure_future(host.start(source.vm_id))
        waiting = asyncio.ensure_future(enter(commands, source.vm_id))
        await asyncio.sleep(0)
        assert (await host.status(source.vm_id)).state == pb.POWER_STATE_STOPPED
    await starting
    await waiting
    assert (await host.status(source.vm_id)).state == pb.POWER_STATE_RUNNING


async def enter(commands: Commands, vm_id: str) -> None:
    async with commands.holding(vm_id, deadline_s=60, refuses_others=False):
        pass


async def test_copying_is_ended_by_a_newer_command_and_leaves_nothing(tmp_path: Path) -> None:
    slow = tmp_path / "slow-qemu-img"
    slow.write_text('#!/bin/sh\ncase $1 in convert) touch "$0.begun"; exec sleep 600;; *) exec qemu-img "$@";; esac\n')
    slow.chmod(0o755)

    async def has_begun() -> bool | None:
        return slow.with_suffix(".begun").exists() or None

    async with node_daemon_parts(tmp_path / "storage", qemu_img=str(slow)) as host:
        source = await source_of(host)
        vm_id, disk = new_id(), pb.DiskSpec(id=new_id(), clone_of=source)
        request = pb.CreateVMOnNodeRequest(vm_id=vm_id, name="web", spec=spec_of(disk), generation=1)
        copying = asyncio.ensure_future(host.servicer.CreateVM(request, None))
        async with asyncio.timeout(60):
            await eventually(has_begun, "copying")
            await host.servicer.DeleteVM(pb.VMIdRequest(vm_id=vm_id, generation=2), None)
            with pytest.raises(ApiError) as caught:
                await copying
        assert caught.value.reason == Reason.STALE_GENERATION
        assert not host.paths.vm_dir(vm_id).exists()
        await host.start(source.vm_id)


# -- templates and linked clones


async def test_linked_clone_is_built_upon_its_template_and_leaves_it_alone(host: NodeDaemonParts) -> None:
    source = await source_of(host)
    await templated(host, source)
    disk = pb.DiskSpec(id=new_id(), size_gib=2, clone_of=linked(source))
    clone_id = await make(host, spec_of(disk))
    original, clone = image_of(host, source.vm_id, source.disk_id), image_of(host, clone_id, disk.id)

    assert stat.S_IMODE(original.stat().st_mode) == 0o400
    assert clone.stat().st_blocks * 512 < MIB
    assert has(clone, 0x5A)
    write(clone, QCOW2, 0x77)
    assert has(clone, 0x77)
    assert has(original, 0x5A)


async def test_linked_clone_of_a_raw_template_is_qcow2(host: NodeDaemonParts) -> None:
    source = await source_of(host, RAW)
    await templated(host, source)
    disk = pb.DiskSpec(id=new_id(), clone_of=linked(source))
    clone_id = await make(host, spec_of(disk))
    assert has(image_of(host, clone_id, disk.id), 0x5A)
    with pytest.raises(InvalidArgument, match="must be QCOW2"):
        await make(host, spec_of(pb.DiskSpec(id=new_id(), format=RAW, clone_of=linked(source))))


async def test_linked_clone_of_what_is_no_template_is_refused(host: NodeDaemonParts) -> None:
    source = await source_of(host)
    with pytest.raises(FailedPrecondition) as caught:
        await make(host, spec_of(pb.DiskSpec(id=new_id(), clone_of=linked(source))))
    assert caught.value.reason == Reason.VM_NOT_TEMPLATE


async def test_template_does_not_start_until_it_is_an_ordinary_vm_again(host: NodeDaemonParts) -> None:
    source = await source_of(host)
    await templated(host, source)
    await templated(host, source)
    with pytest.raises(FailedPrecondition) as caught:
        await host.start(source.vm_id)
    assert caught.value.reason == Reason.VM_IS_TEMPLATE
    await templated(host, source, is_template=False)
    await host.start(source.vm_id)
    assert stat.S_IMODE(image_of(host, source.vm_id, source.disk_id).stat().st_mode) == 0o600


async def test_template_under_linked_clones_can_neither_go_nor_change_until_they_are_gone(
    host: NodeDaemonParts,
) -> None:
    source = await source_of(host)
    await templated(host, source)
    clone_id = await make(host, spec_of(pb.DiskSpec(id=new_id(), clone_of=linked(source))))
    for attempt in (delete(host, source.vm_id), templated(host, source, is_template=False)):
        with pytest.raises(FailedPrecondition) as caught:
            await attempt
        assert caught.value.reason == Reason.TEMPLATE_IN_USE
        assert clone_id in caught.value.message
    assert has(image_of(host, source.vm_id, source.disk_id), 0x5A)
    await delete(host, clone_id)
    await delete(host, source.vm_id)
    assert list(host.paths.root.iterdir()) == []


async def test_chain_of_linked_clones_has_an_end(host: NodeDaemonParts) -> None:
    source = await source_of(host)
    for _ in range(8):
        await templated(host, source)
        disk = pb.DiskSpec(id=new_id(), size_gib=1, clone_of=linked(source))
        source = pb.CloneSource(vm_id=await make(host, spec_of(disk)), disk_id=disk.id)
    await templated(host, source)
    with pytest.raises(InvalidArgument, match="make a full clone"):
        await make(host, spec_of(pb.DiskSpec(id=new_id(), clone_of=linked(source))))
    last = pb.DiskSpec(id=new_id(), clone_of=source)
    clone_id = await make(host, spec_of(last))
    assert has(image_of(host, clone_id, last.id), 0x5A), "a full clone takes everything that is behind"


# -- first boot


def seeded(user_data: str) -> pb.VMSpec:
    return pb.VMSpec(cpu_cores=1, memory_mib=64, cloud_init=pb.CloudInitConfig(user_data=user_data))


async def test_seed_lies_with_the_vm_for_nobody_to_read_and_goes_with_it(host: NodeDaemonParts) -> None:
    vm_id = await make(host, seeded("one"))
    seed = host.paths.vm_dir(vm_id) / "seed.iso"
    assert stat.S_IMODE(seed.stat().st_mode) == 0o600
    assert b"one" in seed.read_bytes()
    assert list(seed.parent.iterdir()) == [seed]
    await delete(host, vm_id)
    assert not seed.parent.exists()


async def test_seed_is_made_anew_when_the_vm_is_reconfigured(host: NodeDaemonParts) -> None:
    vm_id = await make(host, seeded("one"))
    seed = host.paths.vm_dir(vm_id) / "seed.iso"
    await reconfigure(host, vm_id, seeded("two"))
    assert b"two" in seed.read_bytes()
    ignition = pb.VMSpec(cpu_cores=1, memory_mib=64, ignition=pb.IgnitionConfig(config='{"ignition":{"version":"3"}}'))
    await reconfigure(host, vm_id, ignition)
    assert [path.name for path in seed.parent.iterdir()] == ["ignition.json"]
    await reconfigure(host, vm_id, spec_of())
    assert list(seed.parent.iterdir()) == []


async def test_seed_stays_as_it_was_when_reconfiguring_fails(host: NodeDaemonParts) -> None:
    vm_id = await make(host, seeded("one"))
    seed = host.paths.vm_dir(vm_id) / "seed.iso"
    host.hypervisor.set_faults(MockFaults((Fault(Operation.RECONFIGURE, Failure.REFUSED),)))
    with pytest.raises(ApiError):
        await reconfigure(host, vm_id, seeded("two"))
    assert b"one" in seed.read_bytes()
    assert list(seed.parent.iterdir()) == [seed]


async def test_create_repeated_with_other_first_boot_contents_is_refused(host: NodeDaemonParts) -> None:
    request = pb.CreateVMOnNodeRequest(vm_id=new_id(), name="web", spec=seeded("one"))
    await host.servicer.CreateVM(request, None)
    assert not (await host.servicer.CreateVM(request, None)).created
    with pytest.raises(AlreadyExists):
        await host.servicer.CreateVM(
            pb.CreateVMOnNodeRequest(vm_id=request.vm_id, name="web", spec=seeded("two")), None
        )
    assert b"one" in (host.paths.vm_dir(request.vm_id) / "seed.iso").read_bytes()


async def test_create_that_is_refused_leaves_no_seed(host: NodeDaemonParts) -> None:
    host.hypervisor.set_faults(MockFaults((Fault(Operation.CREATE, Failure.REFUSED),)))
    with pytest.raises(ApiError):
        await make(host, seeded("one"))
    assert list(host.paths.root.iterdir()) == []
