"""A small real Linux inside a VM of a hypervisor backend: its configuration, and a shell in it by its agent."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass

from controlplane.cli.dev.guest_image import GuestImage, build_guest_image
from hypervisor.base import Hypervisor
from hypervisor.errors import HypervisorError
from hypervisor.guests import GuestCommand
from hypervisor.types import CpuTopology, DirectBoot, VmConfig
from tests.support.private_libvirt_host import TEST_CACHE_DIR, eventually

MEMORY_MIB = 128
BOOT_DEADLINE_S = 100.0


async def linux_config() -> VmConfig:
    """Make the configuration of a VM that boots it, without disks or cards; builds the image if there is none."""
    image: GuestImage = await asyncio.to_thread(build_guest_image, TEST_CACHE_DIR / "guest", print)
    vm_id = str(uuid.uuid4())
    boot = DirectBoot(image.kernel, image.initrd, f"{image.kernel_arguments} hostname=linux")
    return VmConfig(vm_id, f"linux-{vm_id[:8]}", CpuTopology(), MEMORY_MIB, direct_boot=boot)


@dataclass(frozen=True, slots=True)
class LinuxGuest:
    """One that runs."""

    hypervisor: Hypervisor
    vm_id: str

    async def wait_until_up(self) -> None:
        """Wait for its agent."""

        async def ping() -> bool | None:
            assert self.hypervisor.guests is not None
            try:
                await self.hypervisor.guests.ping(self.vm_id)
            except HypervisorError:
                return None
            return True

        await eventually(ping, "the guest's agent", BOOT_DEADLINE_S)

    async def run(self, script: str) -> str:
        """Run a shell script in it; fails with what it complained of."""
        assert self.hypervisor.guests is not None
        result = await self.hypervisor.guests.execute(self.vm_id, GuestCommand("/bin/sh", ("-c", script)))
        assert result.exit_code == 0, f"{script!r} ended with {result.exit_code}: {result.stderr.decode()}"
        return result.stdout.decode().strip()

    async def until(self, script: str, what: str, deadline_s: float = 60.0) -> None:
        """Wait until a script ends well."""

        async def look() -> bool | None:
            return True if await self.run(f"if {script}; then echo y; fi") == "y" else None

        await eventually(look, what, deadline_s)
