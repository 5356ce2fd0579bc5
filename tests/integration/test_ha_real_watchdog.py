"""The guard and a real /dev/watchdog: a host is reset when the guard is gone, hangs or cannot kill, and only then.

The host is a small Linux guest with the kernel's own `softdog`, and in it the guard as it is, with Python. VMs are
processes of it; one that cannot be killed is held by the kernel's freezer, as by storage that is gone. Source: the
kernel's watchdog-api.rst, and freezer-subsystem.rst of control groups of version 1, whose frozen processes do not die.
`LIMIQUANTIX_HA=all` (`make test-ha`) runs it.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from controlplane.cli.dev.cpio import Archive
from controlplane.cli.dev.guest_image import GuestImage, build_guest_image
from controlplane.cli.dev.kernel_modules import load_order
from controlplane.cli.dev.packages import PackageSource
from hypervisor.errors import HypervisorError
from hypervisor.libvirt.backend import LibvirtHypervisor
from hypervisor.types import Accelerator, CpuTopology, DirectBoot, VmConfig
from nodedaemon.self_fencing.guard import WATCHDOG_S
from tests.support.linux_guest import LinuxGuest
from tests.support.private_libvirt_host import (
    TEST_CACHE_DIR,
    eventually,
    private_libvirt,
    skip_unless_private_libvirt,
)
from tests.support.python_in_guest import PYTHON, python_archive

pytest.importorskip("libvirt")
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not os.environ.get("LIMIQUANTIX_HA"), reason="LIMIQUANTIX_HA=all runs it"),
]

OWN_MARGIN_S = 60
"""What softdog takes if nobody tells it."""
BOOT_S = 120.0
MEMORY_MIB = 384
VM_ID = str(uuid.uuid4())
GUARD = "nodedaemon.self_fencing.guard"
ORDERS = "nodedaemon.self_fencing.orders"

_ORDER = f"""
import os, sys, time
from hypervisor.processes import start_ticks
from {ORDERS} import ORDERS_NAME, Orders, write_file
boot_id = open("/proc/sys/kernel/random/boot_id").read().strip()
end_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + int(float(sys.argv[1]) * 1e9)
write_file("/run/guard", ORDERS_NAME, Orders(boot_id, True, end_ns, ("{VM_ID}",), "/run/pids", 1000))
"""


@dataclass
class Host:
    """A guest that stands for a machine which runs VMs."""

    guest: LinuxGuest

    async def boot_id(self) -> str:
        return await self.guest.run("cat /proc/sys/kernel/random/boot_id")

    async def prepare(self) -> str:
        """Load the watchdog and start a guard that feeds it; returns what this boot is called."""
        await self.guest.run(
            "mkdir /run/pids && while read -r module; do insmod /watchdog/$module.ko; done </watchdog/order"
        )
        await self.start_guard()
        return await self.boot_id()

    async def start_guard(self) -> None:
        """Start one, and wait until it says how it is."""
        await self.guest.run(
            f"""rm -f /run/guard/report.json
            {PYTHON} -m {GUARD} --stay /run/guard /proc/sys/kernel/random/boot_id /dev/watchdog \
                >/run/guard.log 2>&1 </dev/null & echo $! >/run/guard.pid"""
        )
        began = "test -s /run/guard/report.json"
        await self.guest.until(f"{began} || ! kill -0 $(cat /run/guard.pid)", "the guard's report")
        assert await self.guest.run(f"{began} || cat /run/guard.log") == ""

    async def run_vm(self) -> None:
        """Start a process that is a VM to the guard, and give that a lease of a minute."""
        await self.guest.run(
            f"{PYTHON} -c 'import time; time.sleep(600)' -uuid {VM_ID} >/dev/null 2>&1 </dev/null &"
            f" echo $! >/run/pids/vm.pid"
        )
        await self.end_lease_in(60)
        await self.guest.until("""grep -q '"vm_count": 1,' /run/guard/report.json""", "the guard watching over the VM")

    async def end_lease_in(self, lease_s: float) -> None:
        await self.guest.run(f"{PYTHON} -c '{_ORDER}' {lease_s}")

    async def until_reset(self, boot_id: str) -> None:
        """Wait until the machine has booted anew, after no more than the watchdog's time."""
        began_s = time.monotonic()

        async def look() -> bool | None:
            try:
                return True if await self.boot_id() != boot_id else None
            except HypervisorError:
                return None

        await eventually(look, "the host having been reset", BOOT_S)
        uptime_s = float((await self.guest.run("cat /proc/uptime")).split()[0])
        assert time.monotonic() - uptime_s - began_s < OWN_MARGIN_S / 2

    async def stays_up(self, boot_id: str) -> None:
        """Look for much longer than the watchdog takes whether the machine stays as it is."""
        await asyncio.sleep(2 * WATCHDOG_S)
        assert await self.boot_id() == boot_id


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    await skip_unless_private_libvirt(tmp_path)
    image = await asyncio.to_thread(build_guest_image, TEST_CACHE_DIR / "guest", print)
    initrd = tmp_path / "initrd"
    initrd.write_bytes(image.initrd.read_bytes() + await asyncio.to_thread(_what_it_needs, image, tmp_path))
    async with private_libvirt(tmp_path / "libvirt") as libvirt:
        backend = LibvirtHypervisor(libvirt.uri, tmp_path / "console", Accelerator.TCG)
        await backend.open()
        boot = DirectBoot(image.kernel, initrd, image.kernel_arguments)
        config = VmConfig(str(uuid.uuid4()), "host", CpuTopology(), MEMORY_MIB, direct_boot=boot)
        await backend.create(config)
        await backend.start(config.vm_id)
        guest = LinuxGuest(backend, config.vm_id)
        await guest.wait_until_up()
        yield Host(guest)
        await backend.force_stop(config.vm_id)
        await backend.delete(config.vm_id)
        await backend.close()


def _what_it_needs(image: GuestImage, directory: Path) -> bytes:
    """Make an archive with Python, the guard, and the kernel's watchdog in software."""
    archive: Archive = python_archive((GUARD, ORDERS))
    source, unpacked = PackageSource(directory), directory / "unpacked"
    source.unpack(f"linux-image-{image.kernel_version}", unpacked)
    modules = load_order(unpacked / "lib/modules" / image.kernel_version, ("softdog",))
    for module in modules:
        archive.add_file(f"/watchdog/{module.name}.ko", module.data)
    archive.add_file("/watchdog/order", "".join(f"{module.name}\n" for module in modules).encode())
    return archive.to_bytes()


async def test_watchdog_resets_a_host_whose_guard_is_gone_hangs_or_cannot_kill(host: Host) -> None:
    first = await host.prepare()
    await host.stays_up(first)

    await host.guest.run("kill -KILL $(cat /run/guard.pid)")
    await host.until_reset(first)

    second = await host.prepare()
    await host.guest.run("kill -STOP $(cat /run/guard.pid)")
    await host.until_reset(second)

    third = await host.prepare()
    await host.run_vm()
    await host.guest.run(
        "mkdir /run/freezer && mount -t cgroup -o freezer none /run/freezer && mkdir /run/freezer/held"
        " && cat /run/pids/vm.pid >/run/freezer/held/tasks && echo FROZEN >/run/freezer/held/freezer.state"
    )
    await host.guest.until("grep -q FROZEN /run/freezer/held/freezer.state", "the VM's process being held")
    await host.stays_up(third)  # the lease goes on
    await host.end_lease_in(0)
    await host.guest.until("""grep -q 'VM processes do not die' /run/guard/report.json""", "the guard saying so", 10)
    await host.until_reset(third)


async def test_watchdog_leaves_a_host_alone_whose_guard_kills_in_time_and_ends(host: Host) -> None:
    boot_id = await host.prepare()
    await host.run_vm()
    await host.end_lease_in(0)
    await host.guest.until("! kill -0 $(cat /run/pids/vm.pid) 2>/dev/null", "the VM's end")
    await host.stays_up(boot_id)

    await host.guest.run("kill -KILL $(cat /run/guard.pid)")
    await host.start_guard()  # as systemd and the daemon do
    await host.stays_up(boot_id)

    await host.guest.run("kill -TERM $(cat /run/guard.pid)")
    await host.guest.until("! kill -0 $(cat /run/guard.pid) 2>/dev/null", "the guard's end")
    await host.stays_up(boot_id)
