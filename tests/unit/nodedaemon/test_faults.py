"""What the documented system's node daemon does wrong, done right; by number, see tests/unit/test_faults_covered.py."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from hypervisor.mock.faults import Fault, MockFaults, Operation
from limiquantix.errors import InvalidArgument
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.config import NodeConfig, is_loopback
from nodedaemon.decode import GIB, decode_vm
from nodedaemon.storage_paths import StoragePaths
from tests.support.config_fields import default_secrets, default_settings
from tests.support.node_daemon_parts import node_daemon_parts
from tests.unit.nodedaemon.test_storage_paths import write_qcow2

VM_ID = "11111111-1111-4111-8111-111111111111"
DISK_ID = "22222222-2222-4222-8222-222222222222"
OTHER_ID = "33333333-3333-4333-8333-333333333333"
SECRET = "what the file outside holds"
DEADLINE_S = 30


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


# -- 11: closed by default


def test_fault_11_every_default_listener_of_the_node_daemon_is_loopback() -> None:
    endings = ("listen_address", "_host")
    listeners = {name: value for name, value in default_settings(NodeConfig) if name.endswith(endings)}
    assert list(listeners) == ["server.listen_address", "server.metrics_host"]
    assert is_loopback(listeners["server.listen_address"])
    assert is_loopback(f"{listeners['server.metrics_host']}:9091")


def test_fault_11_node_daemon_has_no_default_secret_and_joins_nobody_unasked() -> None:
    assert default_secrets(NodeConfig) == {}
    config = dict(default_settings(NodeConfig))
    assert config["control_plane.address"] == ""  # where to go, and whom to believe, is told by joining only


def test_fault_11_no_request_can_say_where_a_console_listens() -> None:
    assert not [field.name for field in pb.ConsoleSpec.DESCRIPTOR.fields if "listen" in field.name]


# -- 16: measured use


async def test_fault_16_busy_vm_has_its_cpu_use_in_every_report(tmp_path: Path) -> None:
    clock = Clock()
    async with node_daemon_parts(tmp_path, clock) as daemon:
        busy, idle = await daemon.create(vcpu_count=4), await daemon.create()
        for vm_id, load in ((busy, 0.5), (idle, 0.0)):
            await daemon.start(vm_id)
            await daemon.hypervisor.set_load(vm_id, load)
            await daemon.status(vm_id)
        clock.now_s += 600
        asked = {vm_id: (await daemon.status(vm_id)).resource_usage.cpu_usage_percent for vm_id in (busy, idle)}
        clock.now_s += 600
        reported = {vm.id: vm.cpu_usage_percent for vm in (await daemon.report.full_state()).vms}
    for seen in (asked, reported):
        assert seen[busy] == pytest.approx(50, rel=0.05)
        assert seen[idle] == 0


# -- 18: nobody waits for another's slow call


async def test_fault_18_other_calls_are_answered_while_one_hangs_in_the_hypervisor(tmp_path: Path) -> None:
    has_begun, may_end = asyncio.Event(), asyncio.Event()

    async def hang(delay_s: float) -> None:
        has_begun.set()
        await may_end.wait()

    async with node_daemon_parts(tmp_path, sleep=hang) as daemon, asyncio.timeout(DEADLINE_S):
        slow, quick = await daemon.create(), await daemon.create()
        daemon.hypervisor.set_faults(MockFaults((Fault(Operation.START, delay_s=1, vm_id=slow),)))
        starting = asyncio.create_task(daemon.start(slow))
        await has_begun.wait()
        await daemon.start(quick)
        assert (await daemon.status(quick)).state == pb.POWER_STATE_RUNNING
        assert (await daemon.status(slow)).state == pb.POWER_STATE_STOPPED
        assert {vm.vm_id for vm in (await daemon.servicer.ListVMs(Empty(), None)).vms} == {slow, quick}
        assert (await daemon.servicer.HealthCheck(pb.HealthCheckRequest(), None)).healthy
        assert not starting.done()
        may_end.set()
        await starting
        assert (await daemon.status(slow)).state == pb.POWER_STATE_RUNNING


# -- 19: no file of the host but those below the storage path


def disk_path(path: str) -> pb.VMSpec:
    return pb.VMSpec(disks=[pb.DiskSpec(id=DISK_ID, path=path, format=pb.DISK_FORMAT_RAW, readonly=True)])


def backing_file(path: str) -> pb.VMSpec:
    return pb.VMSpec(disks=[pb.DiskSpec(id=DISK_ID, backing_file=path)])


def iso_path(path: str) -> pb.VMSpec:
    return pb.VMSpec(cdroms=[pb.CdromSpec(id=DISK_ID, iso_path=path, connected=True)])


def kernel_path(path: str) -> pb.VMSpec:
    return pb.VMSpec(direct_boot=pb.DirectKernelBoot(kernel_path=path))


def initrd_path(path: str) -> pb.VMSpec:
    return pb.VMSpec(direct_boot=pb.DirectKernelBoot(kernel_path="templates/base.raw", initrd_path=path))


FIELDS: dict[str, Callable[[str], pb.VMSpec]] = {
    "spec.disks[0].path": disk_path,
    "spec.disks[0].backing_file": backing_file,
    "spec.cdroms[0].iso_path": iso_path,
    "spec.direct_boot.kernel_path": kernel_path,
    "spec.direct_boot.initrd_path": initrd_path,
}

ASTRAY = {
    "absolute": ("{outside}/secret.raw", "{outside}/none.raw"),
    "dots": ("../outside/secret.raw", "../outside/none.raw"),
    "dots after a directory": ("templates/../../outside/secret.raw", "templates/../../outside/none.raw"),
    "out and back in": ("{outside}/secret.raw/../../images/{good}", "{outside}/none.raw/../../images/{good}"),
    "up and back in": ("../images/{good}", "../none/{good}"),
    "link to a file": ("templates/link.raw", "templates/dangling.raw"),
    "link to a directory": ("templates/out/secret.raw", "templates/out/none.raw"),
    "file of another VM": (f"{OTHER_ID}/disk.raw", f"{OTHER_ID}/none.raw"),
    "another VM's directory": (OTHER_ID, "44444444-4444-4444-8444-444444444444"),
    "link to another VM's file": ("templates/theirs.raw", "templates/theirs-none.raw"),
    "device": ("/dev/null", "/dev/none"),
    "link to a device": ("templates/null.raw", "templates/dangling.raw"),
    "directory": ("templates/sub", "templates/none.raw"),
    "pipe": ("templates/pipe.raw", "templates/none.raw"),
    "kernel's own file": ("/proc/self/environ", "/proc/self/none"),
}
"""Pairs of paths that must be refused; what the first names exists, what the second names does not."""


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.raw").write_text(SECRET)
    return outside


@pytest.fixture
def paths(tmp_path: Path, outside: Path) -> StoragePaths:
    root = tmp_path / "images"
    templates = root / "templates"
    for directory in (templates / "sub", root / OTHER_ID, root / VM_ID):
        directory.mkdir(parents=True)
    with (templates / "base.raw").open("wb") as file:
        file.truncate(GIB)
    (root / OTHER_ID / "disk.raw").write_text(SECRET)
    links = {
        "link.raw": outside / "secret.raw",
        "dangling.raw": outside / "none.raw",
        "out": outside,
        "theirs.raw": root / OTHER_ID / "disk.raw",
        "theirs-none.raw": root / OTHER_ID / "none.raw",
        "null.raw": Path("/dev/null"),
    }
    for name, target in links.items():
        (templates / name).symlink_to(target)
    os.mkfifo(templates / "pipe.raw")
    return StoragePaths(root)


def refusal(spec: pb.VMSpec, field: str, paths: StoragePaths) -> str:
    """Say in what words a VM is refused, which must be for this field only and tell nothing of the host."""
    spec.cpu_cores, spec.memory_mib = 1, 64
    with pytest.raises(InvalidArgument) as caught:
        decode_vm(VM_ID, "web", spec, paths)
    error = caught.value
    assert [violation.field for violation in error.violations] == [field]
    text = " ".join([error.message, error.violations[0].description, *error.metadata.values()])
    for told in (SECRET, str(paths.root.parent), "/dev", "/proc", "none", "secret"):
        assert told not in text
    return error.violations[0].description


@pytest.mark.parametrize("field", FIELDS)
def test_fault_19_file_below_the_storage_path_is_taken_for_each_field(paths: StoragePaths, field: str) -> None:
    spec = FIELDS[field]("templates/base.raw")
    spec.cpu_cores, spec.memory_mib = 1, 64
    assert decode_vm(VM_ID, "web", spec, paths).config.vm_id == VM_ID


@pytest.mark.parametrize("way", ASTRAY)
@pytest.mark.parametrize("field", FIELDS)
def test_fault_19_path_astray_is_refused_alike_whether_or_not_anything_is_there(
    paths: StoragePaths, outside: Path, field: str, way: str
) -> None:
    there, absent = (path.format(outside=outside, good="templates/base.raw") for path in ASTRAY[way])
    assert refusal(FIELDS[field](there), field, paths) == refusal(FIELDS[field](absent), field, paths)


HEADERS = {
    "absolute": ("{outside}/secret.raw", "{outside}/none.raw"),
    "dots": ("../../outside/secret.raw", "../../outside/none.raw"),
    "out and back in": (
        "{outside}/secret.raw/../../images/templates/base.raw",
        "{outside}/none.raw/../../images/templates/base.raw",
    ),
    "file of another VM": (f"../{OTHER_ID}/disk.raw", f"../{OTHER_ID}/none.raw"),
    "protocol": ("nbd:localhost:1", "nbd:localhost:2"),
}
"""Pairs of backing files that an image's own header names, as `ASTRAY`."""


@pytest.mark.parametrize("way", HEADERS)
@pytest.mark.parametrize(
    ("image", "field"),
    [("templates/image.qcow2", "spec.disks[0].backing_file"), (f"{VM_ID}/image.qcow2", "spec.disks[0].path")],
)
def test_fault_19_image_whose_header_leads_astray_is_refused_alike(
    paths: StoragePaths, outside: Path, image: str, field: str, way: str
) -> None:
    spec = FIELDS[field](image)
    spec.disks[0].format = pb.DISK_FORMAT_QCOW2
    words = []
    for backing in HEADERS[way]:
        write_qcow2(paths.root / image, backing.format(outside=outside), "raw")
        words.append(refusal(spec, field, paths))
    assert words[0] == words[1]


@pytest.mark.parametrize(
    ("image", "field"),
    [("templates/image.qcow2", "spec.disks[0].backing_file"), (f"{VM_ID}/image.qcow2", "spec.disks[0].path")],
)
def test_fault_19_image_with_an_external_data_file_is_refused(paths: StoragePaths, image: str, field: str) -> None:
    write_qcow2(paths.root / image, external_data=True)
    spec = FIELDS[field](image)
    spec.disks[0].format = pb.DISK_FORMAT_QCOW2
    assert "external data file" in refusal(spec, field, paths)


# -- 25: nothing stays


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
async def test_fault_25_deleted_vm_leaves_no_disk_and_no_directory_and_others_keep_theirs(tmp_path: Path) -> None:
    async with node_daemon_parts(tmp_path) as daemon:
        gone, kept = await daemon.create(disk_count=2), await daemon.create(disk_count=1)
        assert len(list(daemon.paths.vm_dir(gone).iterdir())) == 2
        await daemon.servicer.DeleteVM(pb.VMIdRequest(vm_id=gone), None)
        assert [path.name for path in daemon.paths.root.iterdir()] == [kept]
        assert len(list(daemon.paths.vm_dir(kept).iterdir())) == 1
