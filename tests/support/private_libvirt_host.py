"""What tests with a real, private libvirt daemon share: whether this machine can run one, guests, and what is left."""

import asyncio
import os
import select
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from controlplane.cli.dev.guest_image import GuestImage
from controlplane.cli.dev.libvirt_choice import SYSTEM_BIN_PATH, LibvirtKind, choose_libvirt, observe_host
from controlplane.cli.dev.libvirtd import PrivateLibvirt

T = TypeVar("T")

TEST_CACHE_DIR = Path(__file__).parents[2] / ".cache" / "tests"
"""Kept between test runs: the guest image, and what libvirt learnt about QEMU. Ignored by git, safe to delete."""


NEED_LIBVIRT = "LIMIQUANTIX_TESTS_NEED_LIBVIRT"
"""Set, it makes a test that cannot have libvirt fail instead of being skipped: where libvirt must work, as in CI, its
absence is a fault of the set-up."""


async def skip_unless_private_libvirt(data_dir: Path) -> None:
    """Skip the test, with the reason, where no private libvirt daemon can run."""
    facts = await observe_host(data_dir)
    if os.geteuid() != 0:
        leave_out("a private libvirt daemon needs root")
    if facts.daemon is None or facts.qemu is None or not facts.may_mount:
        choice = choose_libvirt(facts, data_dir)
        leave_out(choice.reason if choice.kind is LibvirtKind.NONE else "libvirt or QEMU is not installed")
    if shutil.which("virsh", path=SYSTEM_BIN_PATH) is None:
        leave_out("virsh (package libvirt-clients) is not installed")


def leave_out(reason: str) -> None:
    """Skip the test, or fail it where `NEED_LIBVIRT` is set."""
    if os.environ.get(NEED_LIBVIRT):
        pytest.fail(reason)
    pytest.skip(reason)


def private_libvirt(data_dir: Path, bridge: str | None = None) -> PrivateLibvirt:
    """Return a daemon, not started, that knows QEMU from earlier runs; without bridge, whose name is machine-wide."""
    return PrivateLibvirt(data_dir, cache_dir=TEST_CACHE_DIR / "libvirt", bridge=bridge)


async def virsh(uri: str, *words: str) -> str:
    """Run virsh and return what it printed; fails with what it complained of."""
    process = await asyncio.create_subprocess_exec(
        "virsh", "--quiet", "--connect", uri, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        output, complaint = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"virsh {' '.join(words)}: {complaint.decode().strip()}")
    return output.decode().strip()


def domain_xml(name: str, image: GuestImage, serial_log: Path, memory_mib: int = 128) -> str:
    """Describe a VM that boots the demo's guest, emulated, with its serial line in a file and the agent's channel."""
    return f"""
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{image.kernel}</kernel>
    <initrd>{image.initrd}</initrd>
    <cmdline>{image.kernel_arguments} hostname={name}</cmdline>
  </os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff>
  <devices>
    <serial type='pty'><log file='{serial_log}' append='off'/><target port='0'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <memballoon model='virtio'/>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
</domain>
"""


async def eventually(look: Callable[[], Awaitable[T | None]], what: str, deadline_s: float = 60.0) -> T:
    """Return what `look` finds as soon as it finds something; fails naming `what` when it never does."""
    until_s = time.monotonic() + deadline_s
    while (found := await look()) is None:
        if time.monotonic() > until_s:
            raise AssertionError(f"{what} did not happen within {deadline_s:.0f} s")
        await asyncio.sleep(0.02)
    return found


def descendants(pid: int) -> list[int]:
    """Return the processes below `pid`, from what the kernel says of each process's parent."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = [pid]
    for above in found:
        found.extend(child for child, parent in parents.items() if parent == above)
    return found[1:]


def process_name(pid: int) -> str:
    """Name a process; "" for one that ended meanwhile, as some do that libvirt runs for a moment."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_running(pid: int) -> bool:
    """Tell whether the process exists and is not merely waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pid: int, deadline_s: float = 60.0) -> None:
    """Block until the process, not necessarily a child of ours, has ended; fails at the deadline."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert poll.poll(deadline_s * 1000), f"process {pid} still runs after {deadline_s:.0f} s"
    finally:
        os.close(descriptor)


def traces_of(directory: Path) -> list[str]:
    """Return the lines of this machine's mounts and open UNIX sockets that name something below `directory`."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines() + Path("/proc/net/unix").read_text().splitlines()
    return [line for line in lines if f"{directory}/" in line]
