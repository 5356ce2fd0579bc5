"""Agents that hang, flood, lie and babble, in a real guest: what that costs the host, and that it ends with them."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import psutil
import pytest
import pytest_asyncio
from lxml import etree

from controlplane.cli.dev.guest_image import build_guest_image
from hypervisor.errors import GuestAgentAbsent, GuestAgentRefused, GuestAgentSilent
from hypervisor.guests import GuestCommand
from hypervisor.libvirt.backend import LibvirtHypervisor
from hypervisor.types import Accelerator, ConsoleKind, CpuTopology, DirectBoot, PowerState, VmConfig
from tests.support.private_libvirt_host import (
    TEST_CACHE_DIR,
    descendants,
    eventually,
    leave_out,
    private_libvirt,
    process_name,
    skip_unless_private_libvirt,
    virsh,
)

pytest.importorskip("libvirt")
pytestmark = pytest.mark.asyncio(loop_scope="module")

PORT = "/dev/virtio-ports/org.qemu.guest_agent.0"
START_AGENT = f"qemu-ga -d -m virtio-serial -p {PORT} -t /run -f /run/qemu-ga.pid -l /run/qemu-ga.log"
EACH_LINE = "while :; do read -r line || { sleep 0.1; continue; };"
"""Begins a loop over what comes by the port; there is nothing to read from it before libvirt has connected."""
GIVEN_UP_S = 20
"""Within which an agent is given up that says nothing: 5 s, 5 s more to synchronise, and what a busy machine adds."""
MEMORY_BOUND_BYTES = 64 * 2**20
"""More than the 10 MiB libvirt buffers and what a busy test process grows by anyway; a flood is 1 GB."""


@dataclass
class Guest:
    """A real guest and its agent, to be set against us."""

    backend: LibvirtHypervisor
    vm_id: str
    uri: str
    libvirtd: psutil.Process
    numbers: Iterator[int] = field(default_factory=count)

    async def up(self) -> None:
        async def look() -> bool | None:
            try:
                await self.backend.guests.ping(self.vm_id)  # type: ignore[union-attr]
            except (GuestAgentAbsent, GuestAgentSilent, GuestAgentRefused):
                return None
            return True

        await eventually(look, "an answer of the agent", 60)

    async def by_hand(self, script: str) -> None:
        """Have the shell on the guest's serial line do something, which needs no agent; returns when it is done."""
        number = next(self.numbers)
        side = await self.backend.open_console(self.vm_id, ConsoleKind.SERIAL)
        _, writer = await asyncio.open_connection(sock=side)
        writer.write(
            f"{script}; echo do''ne-{number}\n".encode()
        )  # what is typed is echoed, and must not be taken for it
        await writer.drain()

        async def look() -> bool | None:
            log = await self.backend.read_console_log(self.vm_id, 0, 2**20)
            return True if f"done-{number}\r\n".encode() in log.data else None

        await eventually(look, f"the end of {script!r}")
        writer.close()

    @asynccontextmanager
    async def replaced_agent(self, script: str) -> AsyncIterator[None]:
        """Have something else in the agent's place for as long as the block lasts."""
        keep = GuestCommand("sh", ("-c", 'printf %s "$0" >/run/bad', script))
        await self.backend.guests.execute(self.vm_id, keep)  # type: ignore[union-attr]
        held = "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q vport"
        await self.by_hand(f"kill $(pidof qemu-ga); while {held}; do sleep 0.1; done; sh /run/bad & bad=$!")
        await self.by_hand(f"until {held}; do sleep 0.1; done")
        await eventually(self.is_connected, "libvirt seeing the agent's port open")
        yield
        await self.by_hand(f"kill -KILL $bad $(pidof head tr cat sed); while {held}; do sleep 0.1; done; {START_AGENT}")

    async def is_connected(self) -> bool | None:
        definition = etree.fromstring(await virsh(self.uri, "dumpxml", self.vm_id))
        found = definition.find("devices/channel/target[@name='org.qemu.guest_agent.0']")
        return True if found is not None and found.get("state") == "connected" else None

    async def outcome(self) -> tuple[str, float]:
        """Ask once; returns what came of it and how long it took."""
        began_s = time.monotonic()
        try:
            await self.backend.guests.ping(self.vm_id)  # type: ignore[union-attr]
        except (GuestAgentSilent, GuestAgentRefused, GuestAgentAbsent) as error:
            return type(error).__name__, time.monotonic() - began_s
        return "answered", time.monotonic() - began_s

    def memory_bytes(self) -> int:
        return psutil.Process().memory_info().rss + self.libvirtd.memory_info().rss


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guest]:
    directory = tmp_path_factory.mktemp("hostile")
    await skip_unless_private_libvirt(directory)
    image = await asyncio.to_thread(build_guest_image, TEST_CACHE_DIR / "guest", print)
    if not image.has_agent:
        leave_out("the guest image was made without the agent")
    async with private_libvirt(directory / "libvirt") as libvirt:
        backend = LibvirtHypervisor(libvirt.uri, directory / "console", Accelerator.TCG)
        await backend.open()
        boot = DirectBoot(image.kernel, image.initrd, image.kernel_arguments)
        config = VmConfig(str(uuid.uuid4()), "hostile", CpuTopology(), 128, direct_boot=boot)
        await backend.create(config)
        await backend.start(config.vm_id)
        found = Guest(backend, config.vm_id, libvirt.uri, libvirtd_of_this_process())
        await found.up()
        yield found
        await backend.force_stop(config.vm_id)
        await backend.delete(config.vm_id)
        await backend.close()


def libvirtd_of_this_process() -> psutil.Process:
    for pid in descendants(os.getpid()):
        if process_name(pid) == "libvirtd":
            return psutil.Process(pid)
    raise AssertionError("no libvirtd of this test")


async def time_of_other_things(guest: Guest) -> float:
    """Do to this guest and to another one what needs no agent; returns how long that took."""
    began_s = time.monotonic()
    await guest.backend.pause(guest.vm_id)
    await guest.backend.resume(guest.vm_id)
    assert [vm.state for vm in await guest.backend.list()] == [PowerState.RUNNING]
    other = VmConfig(str(uuid.uuid4()), "other", CpuTopology(), 16)
    await guest.backend.create(other)
    await guest.backend.start(other.vm_id)
    await guest.backend.force_stop(other.vm_id)
    await guest.backend.delete(other.vm_id)
    return time.monotonic() - began_s


async def test_agent_that_hangs_holds_up_nothing_else_and_is_heard_again(guest: Guest) -> None:
    usual_s = await time_of_other_things(guest)
    await guest.by_hand("kill -STOP $(pidof qemu-ga)")
    asking = asyncio.create_task(guest.outcome())
    await asyncio.sleep(0.5)  # until libvirt has the question: it would not take it while the guest is paused

    assert await time_of_other_things(guest) < 3 + 2 * usual_s

    outcome, took_s = await asking
    assert outcome == "GuestAgentSilent"
    assert took_s < GIVEN_UP_S
    # Known to be silent, it is tried by one at a time; nobody else queues behind that.
    outcomes = sorted(await asyncio.gather(*(guest.outcome() for _ in range(20))), key=lambda each: each[1])
    assert {outcome for outcome, _ in outcomes} == {"GuestAgentSilent"}
    assert outcomes[-2][1] < outcomes[-1][1] / 2
    await guest.by_hand("kill -CONT $(pidof qemu-ga)")
    await guest.up()
    assert (await guest.backend.guests.system(guest.vm_id)).hostname == "limiquantix-guest"  # type: ignore[union-attr]


async def test_agent_that_floods_without_a_newline_costs_bounded_memory_and_its_successor_is_heard(
    guest: Guest,
) -> None:
    before_bytes = guest.memory_bytes()
    peak_bytes = 0
    async with guest.replaced_agent(f"head -c 1000000000 /dev/zero | tr '\\000' a >{PORT}"):
        for _ in range(2):
            outcome, took_s = await guest.outcome()
            peak_bytes = max(peak_bytes, guest.memory_bytes())
            assert outcome in {"GuestAgentSilent", "GuestAgentAbsent", "GuestAgentRefused"}
            assert took_s < GIVEN_UP_S
    assert peak_bytes - before_bytes < MEMORY_BOUND_BYTES
    assert (await guest.backend.status(guest.vm_id)).state is PowerState.RUNNING
    await guest.up()


async def test_agent_that_lies_about_ids_and_answers_twice_is_not_believed(guest: Guest) -> None:
    liar = f"{EACH_LINE} echo '{{\"return\": 7}}'; echo '{{\"return\": 8}}'; done <>{PORT} >&0"
    async with guest.replaced_agent(liar):
        outcome, took_s = await guest.outcome()
    assert outcome in {"GuestAgentSilent", "GuestAgentRefused"}
    assert took_s < GIVEN_UP_S
    await guest.up()
    assert (await guest.backend.guests.system(guest.vm_id)).kernel_version  # type: ignore[union-attr]


async def test_agent_that_synchronises_and_then_babbles_is_refused_or_cleaned(guest: Guest) -> None:
    """It answers with the id it was asked for, and to everything else with a list of strange interfaces, twice."""
    name = "\\u202eeth0\\u001b[31m" + "x" * 1000
    babble = f'{{"return": [{{"name": "{name}", "ip-addresses": [{{"ip-address": "<script>"}}, 7]}}, 7]}}'
    script = (
        f"{EACH_LINE} case $line in "
        '*guest-sync*) id=${line##*:}; id=${id%%\\}*}; echo "{\\"return\\": $id}";; '
        f"*) echo '{babble}'; echo '{babble}';; esac; done <>{PORT} >&0"
    )
    agents = guest.backend.guests
    assert agents is not None
    async with guest.replaced_agent(script):
        for ask in (agents.ping, agents.system, agents.freeze, agents.sync_time):
            with pytest.raises((GuestAgentRefused, GuestAgentSilent)):
                await ask(guest.vm_id)
        found = await agents.interfaces(guest.vm_id)
    assert [dataclasses.astuple(nic) for nic in found] == [("\ufffdeth0\ufffd[31m" + "x" * 245, "", ())]
    await guest.up()
