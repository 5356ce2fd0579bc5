"""Snapshots, saving and stopping as a real Linux guest sees them: its files, its running programs, its agent."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from controlplane.cli.dev.guest_image import build_guest_image
from hypervisor.base import Hypervisor
from hypervisor.errors import CannotQuiesce, SnapshotUnsupported
from hypervisor.libvirt.connection import LibvirtConnection
from hypervisor.libvirt.domain_inventory import Inventory
from hypervisor.libvirt.domain_operations import DomainOperations
from hypervisor.libvirt.domain_xml import HostTraits
from hypervisor.libvirt.freezing import Freezer
from hypervisor.libvirt.visits import Visits
from hypervisor.registry import Backend, HypervisorSettings, create_hypervisor
from hypervisor.snapshots import SnapshotRequest, Snapshots
from hypervisor.types import (
    Accelerator,
    CpuTopology,
    DirectBoot,
    DiskConfig,
    DiskFormat,
    Firmware,
    PowerState,
    VmConfig,
)
from tests.support.private_libvirt_host import (
    TEST_CACHE_DIR,
    eventually,
    private_libvirt,
    skip_unless_private_libvirt,
)

pytest.importorskip("libvirt")

MOUNT = "mount -t ext4 /dev/vda /mnt"
COUNT = (
    "echo 0 >/run/count; (i=0; while :; do i=$((i+1)); echo $i >/run/next; mv /run/next /run/count; sleep 0.1; done) "
    ">/dev/null 2>&1 </dev/null &"
)


def run(*words: str | Path) -> str:
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True, timeout=120).stdout


class Guest:
    """A Linux guest with two disks, and its agent as the hands inside."""

    def __init__(self, uri: str, directory: Path, firmware: Firmware = Firmware.BIOS) -> None:
        import libvirt  # noqa: PLC0415 - optional

        self._connection = libvirt.open(uri)
        image = build_guest_image(TEST_CACHE_DIR / "guest", print)
        assert image.has_agent
        self.vm_id = str(uuid.uuid4())
        self.disks = [directory / f"{self.vm_id}-{number}.qcow2" for number in range(2)]
        plain = directory / f"{self.vm_id}.raw"
        run("qemu-img", "create", "-q", "-f", "raw", plain, "64M")
        run("mke2fs", "-q", "-t", "ext4", plain)
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", plain, self.disks[0])
        run("qemu-img", "create", "-q", "-f", "qcow2", self.disks[1], "64M")
        self.config = VmConfig(
            self.vm_id,
            "snapped",
            CpuTopology(),
            128 if firmware is Firmware.BIOS else 320,
            firmware=firmware,
            direct_boot=DirectBoot(image.kernel, image.initrd, f"{image.kernel_arguments} hostname=snapped"),
            disks=tuple(DiskConfig(str(uuid.uuid4()), path, DiskFormat.QCOW2) for path in self.disks),
        )

    @property
    def domain(self) -> Any:
        return self._connection.lookupByUUIDString(self.vm_id)

    def ask_agent(self, command: str, timeout_s: int = 30, **arguments: Any) -> Any:
        import libvirt_qemu  # noqa: PLC0415 - optional

        words = json.dumps({"execute": command, "arguments": arguments})
        return json.loads(libvirt_qemu.qemuAgentCommand(self.domain, words, timeout_s, 0))["return"]

    def _shell(self, command: str) -> str:
        run_it = self.ask_agent("guest-exec", path="/bin/sh", arg=["-c", command], **{"capture-output": True})
        while not (told := self.ask_agent("guest-exec-status", pid=run_it["pid"]))["exited"]:
            time.sleep(0.02)
        assert told["exitcode"] == 0, (command, base64.b64decode(told.get("err-data", "")))
        return base64.b64decode(told.get("out-data", "")).decode().strip()

    async def shell(self, command: str) -> str:
        """Run a command inside and return what it printed; fails if it failed."""
        return await asyncio.to_thread(self._shell, command)

    async def count(self) -> int:
        return int(await self.shell("cat /run/count"))

    async def until_up(self) -> None:
        """Wait until the agent answers."""

        def ping() -> bool | None:
            try:
                self.ask_agent("guest-ping", timeout_s=5)
            except Exception:  # noqa: BLE001 - any of libvirt's
                return None
            return True

        await eventually(lambda: asyncio.to_thread(ping), "an answer of the guest's agent", deadline_s=100)

    def is_noted_frozen(self) -> bool:
        return "urn:limiquantix:libvirt:frozen" in self.domain.XMLDesc()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def uri(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    directory = tmp_path_factory.mktemp("snapshots")
    await skip_unless_private_libvirt(directory)
    async with private_libvirt(directory / "libvirt") as running:
        yield running.uri


@pytest.fixture
async def backend(uri: str, tmp_path: Path) -> AsyncIterator[Hypervisor]:
    settings = HypervisorSettings(
        Backend.LIBVIRT, libvirt_uri=uri, console_log_dir=tmp_path / "console", accelerator=Accelerator.TCG
    )
    hypervisor = create_hypervisor(settings)
    await hypervisor.open()
    yield hypervisor
    for vm in await hypervisor.list():
        await hypervisor.force_stop(vm.vm_id)
        await hypervisor.delete(vm.vm_id)
    await hypervisor.close()


@pytest.fixture
async def guest(backend: Hypervisor, uri: str, tmp_path: Path) -> Guest:
    made = await asyncio.to_thread(Guest, uri, tmp_path)
    await backend.create(made.config)
    await backend.start(made.vm_id)
    await made.until_up()
    return made


def snapshots_of(backend: Hypervisor) -> Snapshots:
    assert backend.snapshots is not None
    return backend.snapshots


def request(name: str, *, include_memory: bool = False, quiesce: bool = False) -> SnapshotRequest:
    return SnapshotRequest(str(uuid.uuid4()), name, include_memory=include_memory, quiesce=quiesce)


def is_journal_clean(image: Path, directory: Path) -> bool:
    """Tell whether the file system on an image needs no repair from its journal."""
    plain = directory / "look.raw"
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, plain)
    return "needs_recovery" not in run("dumpe2fs", "-h", plain)


async def test_files_and_programs_of_a_guest_go_back_to_what_they_were(
    backend: Hypervisor, guest: Guest, tmp_path: Path
) -> None:
    snapshots, vm_id = snapshots_of(backend), guest.vm_id
    await guest.shell(f"{MOUNT}; echo 1 >/mnt/before; echo 1111 | dd of=/dev/vdb conv=fsync; {COUNT}")

    quiet, rough = request("quiet", quiesce=True), request("rough")
    taken = await snapshots.create(vm_id, quiet)
    assert (taken.is_quiesced, taken.frozen_filesystem_count, taken.has_memory) == (True, 1, False)
    assert guest.ask_agent("guest-fsfreeze-status") == "thawed"
    assert not guest.is_noted_frozen()
    await guest.shell("echo 2 >/mnt/after; sync; echo 2222 | dd of=/dev/vdb conv=fsync")  # it can write again
    await snapshots.create(vm_id, rough)

    memory = request("memory", include_memory=True)
    counted = await guest.count()
    taken = await snapshots.create(vm_id, memory)
    assert taken.size_bytes > 10 * 2**20
    await guest.shell("echo 3 >/run/later; echo 3 >/mnt/later; sync; echo 3333 | dd of=/dev/vdb conv=fsync")
    await eventually(lambda: _above(guest, counted), "the guest's counter going on")

    await snapshots.revert(vm_id, memory.snapshot_id)
    assert (await backend.status(vm_id)).state is PowerState.RUNNING
    await guest.until_up()
    again = await guest.count()
    assert again >= counted
    await guest.shell("test ! -e /run/later")
    assert await guest.shell("ls /mnt; dd if=/dev/vdb bs=4 count=1 iflag=direct 2>/dev/null || head -c4 /dev/vdb") == (
        "after\nbefore\nlost+found\n2222"
    )
    await eventually(lambda: _above(guest, again), "the program going on after the revert")

    await snapshots.delete(vm_id, rough.snapshot_id)  # the parent of the one with memory, while the guest runs
    assert [(each.name, each.parent_id) for each in await snapshots.list(vm_id)] == [
        ("quiet", ""),
        ("memory", quiet.snapshot_id),
    ]

    await snapshots.revert(vm_id, quiet.snapshot_id)
    assert (await backend.status(vm_id)).state is PowerState.STOPPED
    assert await asyncio.to_thread(is_journal_clean, guest.disks[0], tmp_path)
    await backend.start(vm_id)
    await guest.until_up()
    assert await guest.shell(f"{MOUNT}; ls /mnt; head -c4 /dev/vdb") == "before\nlost+found\n1111"
    await snapshots.delete(vm_id, quiet.snapshot_id)
    await snapshots.delete(vm_id, memory.snapshot_id)
    held = [json.loads(run("qemu-img", "info", "-U", "--output=json", disk)) for disk in guest.disks]
    assert all("snapshots" not in image for image in held)


async def _above(guest: Guest, count: int) -> int | None:
    now = await guest.count()
    return now if now > count else None


async def test_suspended_guest_goes_on_where_it_was(backend: Hypervisor, guest: Guest) -> None:
    await guest.shell(COUNT)
    boot_id = await guest.shell("cat /proc/sys/kernel/random/boot_id")
    counted = await eventually(lambda: _above(guest, 2), "the guest's counter")
    await backend.suspend(guest.vm_id)
    assert (await backend.status(guest.vm_id)).state is PowerState.SUSPENDED
    await backend.start(guest.vm_id)
    await guest.until_up()
    assert await guest.count() >= counted
    assert await guest.shell("cat /proc/sys/kernel/random/boot_id") == boot_id
    await eventually(lambda: _above(guest, counted), "the program going on after the start")

    # A guest whose agent hangs is asked by its power button instead, and at once.
    await guest.shell("(sleep 0.3; kill -STOP $(cat /run/qemu-ga.pid)) >/dev/null 2>&1 </dev/null &")
    await asyncio.to_thread(_until_mute, guest)
    began_s = time.monotonic()
    await backend.stop(guest.vm_id, 100)
    assert time.monotonic() - began_s < 30
    assert (await backend.status(guest.vm_id)).state is PowerState.STOPPED


def _until_mute(guest: Guest) -> None:
    for _ in range(100):
        try:
            guest.ask_agent("guest-ping", timeout_s=1)
        except Exception:  # noqa: BLE001 - any of libvirt's
            return
        time.sleep(0.1)
    raise AssertionError("the agent answers still")


async def test_guest_never_stays_frozen(backend: Hypervisor, guest: Guest, uri: str, tmp_path: Path) -> None:
    snapshots = snapshots_of(backend)
    await guest.shell(MOUNT)

    async def is_thawed() -> bool | None:
        try:
            return (not guest.is_noted_frozen() and guest.ask_agent("guest-fsfreeze-status") == "thawed") or None
        except Exception:  # noqa: BLE001 - any of libvirt's, while another call has the agent
            return None

    for delay_s in (0.0, 0.02, 0.05, 0.1):  # a caller who goes away, whenever that is
        taking = asyncio.create_task(snapshots.create(guest.vm_id, request(f"cut short {delay_s}", quiesce=True)))
        await asyncio.wait({taking}, timeout=delay_s)
        taking.cancel()
        await asyncio.wait({taking})
        await eventually(is_thawed, "the thaw after a cancellation")

    # A process that dies between freeze and thaw; its successor thaws.
    connection = LibvirtConnection(uri, on_event=lambda _: None, on_reconnect=_nothing, call_deadline_s=30)
    await connection.open()
    operations = DomainOperations(
        connection.library, Inventory(connection.library), HostTraits(Accelerator.TCG, tmp_path)
    )
    assert await Freezer(Visits(connection, operations)).freeze(guest.vm_id) == 1
    await connection.close()
    assert guest.is_noted_frozen()
    assert guest.ask_agent("guest-fsfreeze-status") == "frozen"
    with pytest.raises(CannotQuiesce, match="frozen already"):
        await snapshots.create(guest.vm_id, request("second", quiesce=True))
    await eventually(is_thawed, "the thaw by whoever comes next")

    again = create_hypervisor(
        HypervisorSettings(Backend.LIBVIRT, libvirt_uri=uri, console_log_dir=tmp_path / "console")
    )
    await connection.open()
    await Freezer(Visits(connection, operations)).freeze(guest.vm_id)
    await connection.close()
    await again.open()
    try:
        await eventually(is_thawed, "the thaw after a restart")
    finally:
        await again.close()
    await guest.shell("echo 1 >/mnt/writable; sync")


async def _nothing() -> None:
    """Nothing to do after a reconnection."""


async def test_uefi_guest_has_snapshots_without_memory_only(backend: Hypervisor, uri: str, tmp_path: Path) -> None:
    guest = await asyncio.to_thread(Guest, uri, tmp_path, Firmware.UEFI)
    snapshots = snapshots_of(backend)
    await backend.create(guest.config)
    first, second = request("off"), request("running")
    await snapshots.create(guest.vm_id, first)
    await backend.start(guest.vm_id)
    await snapshots.create(guest.vm_id, second)
    with pytest.raises(SnapshotUnsupported, match="UEFI"):
        await snapshots.create(guest.vm_id, request("memory", include_memory=True))
    await snapshots.delete(guest.vm_id, second.snapshot_id)
    held = json.loads(run("qemu-img", "info", "-U", "--output=json", guest.disks[0]))
    assert [each["name"] for each in held["snapshots"]] == [first.snapshot_id]
    await snapshots.revert(guest.vm_id, first.snapshot_id)
    assert (await backend.status(guest.vm_id)).state is PowerState.STOPPED
