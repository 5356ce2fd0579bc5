"""The rules of `hypervisor.guests`, checked on simulated guests and on a real Linux with QEMU's guest agent."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from controlplane.cli.dev.guest_image import build_guest_image
from hypervisor.base import Hypervisor
from hypervisor.errors import GuestAgentAbsent, GuestAgentRefused, GuestAgentSilent, VmNotFound, WrongState
from hypervisor.guests import MAX_FILE_BYTES, MAX_OUTPUT_BYTES, FreezeStatus, GuestAgents, GuestCommand
from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.host import MockSettings
from hypervisor.registry import Backend, HypervisorSettings, create_hypervisor
from hypervisor.types import (
    Accelerator,
    CpuTopology,
    DirectBoot,
    DiskConfig,
    DiskFormat,
    NicConfig,
    PowerState,
    VmConfig,
)
from tests.support.private_libvirt_host import TEST_CACHE_DIR, eventually, leave_out

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAME = "inside"
BOOT_DEADLINE_S = 90
DISK_MIB = 16


@dataclass
class Guest:
    """A VM whose agent answers."""

    backend: Hypervisor
    config: VmConfig
    kernel: str
    is_real: bool

    @property
    def vm_id(self) -> str:
        return self.config.vm_id

    @property
    def agent(self) -> GuestAgents:
        assert self.backend.guests is not None
        return self.backend.guests

    async def up(self) -> None:
        async def look() -> bool | None:
            try:
                await self.agent.ping(self.vm_id)
            except (GuestAgentAbsent, GuestAgentSilent):  # a guest under emulation may be slow as it boots
                return None
            return True

        await eventually(look, "the agent's first answer", BOOT_DEADLINE_S)

    async def sh(self, script: str, time_limit_s: float = 20.0) -> str:
        command = GuestCommand("sh", ("-c", script), time_limit_s=time_limit_s)
        result = await self.agent.execute(self.vm_id, command)
        assert result.exit_code == 0, result
        return result.stdout.decode()


def mock_guest(directory: Path) -> tuple[Hypervisor, VmConfig, str]:
    backend = MockHypervisor(MockSettings(state_path=directory / "mock.json", boot_s=0.05, shutdown_s=0.02))
    nic = NicConfig("nic", "52:54:00:00:00:01")
    return backend, VmConfig(str(uuid.uuid4()), NAME, CpuTopology(), 64, nics=(nic,)), "6.1.0-mock"


def real_guest(directory: Path, uri: str) -> tuple[Hypervisor, VmConfig, str]:
    image = build_guest_image(TEST_CACHE_DIR / "guest", print)
    if not image.has_agent:
        leave_out("the guest image was made without the agent")
    backend = create_hypervisor(
        HypervisorSettings(
            Backend.LIBVIRT,
            libvirt_uri=uri,
            console_log_dir=directory / "console",
            accelerator=Accelerator.TCG,
        )
    )
    disk = directory / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(DISK_MIB * 2**20)
    boot = DirectBoot(image.kernel, image.initrd, f"{image.kernel_arguments} hostname={NAME}")
    config = VmConfig(
        str(uuid.uuid4()),
        NAME,
        CpuTopology(),
        128,
        direct_boot=boot,
        disks=(DiskConfig(str(uuid.uuid4()), disk, DiskFormat.RAW),),
        nics=(NicConfig(str(uuid.uuid4()), "52:54:00:00:00:01"),),
    )
    return backend, config, image.kernel_version


@pytest.fixture(scope="module", params=["mock", "libvirt"])
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Hypervisor, VmConfig, str]:
    directory = tmp_path_factory.mktemp("guest")
    if request.param == "mock":
        return mock_guest(directory)
    return real_guest(directory, request.getfixturevalue("libvirt_uri"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest(parts: tuple[Hypervisor, VmConfig, str]) -> AsyncIterator[Guest]:
    """One guest for all tests of this module."""
    backend, config, kernel = parts
    await backend.open()
    await backend.create(config)
    await backend.start(config.vm_id)
    running = Guest(backend, config, kernel, isinstance(backend, MockHypervisor) is False)
    await running.up()
    yield running
    await backend.force_stop(config.vm_id)
    await backend.delete(config.vm_id)
    await backend.close()


async def test_ping_of_a_booted_guest_tells_the_agents_version_and_uptime(guest: Guest) -> None:
    presence = await guest.agent.ping(guest.vm_id)
    assert presence.version[0].isdigit()
    assert presence.uptime_s is not None
    assert 0 < presence.uptime_s < 600


async def test_system_is_what_runs_inside(guest: Guest) -> None:
    system = await guest.agent.system(guest.vm_id)
    assert (system.hostname, system.kernel_version) == (NAME, guest.kernel)
    assert system.os_name
    assert system.agent_version == (await guest.agent.ping(guest.vm_id)).version


async def test_interfaces_are_those_of_the_vm_with_their_addresses(guest: Guest) -> None:
    async def look() -> tuple[str, ...] | None:
        found = {nic.mac_address: nic.ip_addresses for nic in await guest.agent.interfaces(guest.vm_id)}
        return found["52:54:00:00:00:01"] or None

    addresses = await eventually(look, "an address by DHCP")
    assert addresses[0].startswith("10.")


async def test_users_are_a_list_of_names(guest: Guest) -> None:
    assert all(user.name for user in await guest.agent.users(guest.vm_id))


async def test_execute_returns_what_the_guests_own_uname_says(guest: Guest) -> None:
    result = await guest.agent.execute(guest.vm_id, GuestCommand("uname", ("-r",)))
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{guest.kernel}\n".encode(), b"")
    assert not result.has_timed_out


async def test_execute_keeps_the_two_outputs_and_the_exit_code_apart(guest: Guest) -> None:
    command = GuestCommand("sh", ("-c", "echo out; echo err >&2; exit 7"))
    result = await guest.agent.execute(guest.vm_id, command)
    assert (result.exit_code, result.stdout, result.stderr) == (7, b"out\n", b"err\n")


async def test_execute_arguments_that_a_shell_would_read_reach_the_command_as_they_are(guest: Guest) -> None:
    arguments = ("$(reboot)", "a  b", "';\"", "\u202e", "-n")
    result = await guest.agent.execute(guest.vm_id, GuestCommand("echo", arguments))
    assert result.stdout.decode() == " ".join(arguments) + "\n"


async def test_execute_passes_input_environment_and_directory(guest: Guest) -> None:
    data = bytes(range(256)) * 1000
    result = await guest.agent.execute(guest.vm_id, GuestCommand("cat", input=data))
    assert result.stdout == data
    environment = {"GREETING": "hello $HOME; 'quoted'"}
    result = await guest.agent.execute(guest.vm_id, GuestCommand("env", environment=environment))
    assert f"GREETING={environment['GREETING']}" in result.stdout.decode().splitlines()
    result = await guest.agent.execute(guest.vm_id, GuestCommand("pwd", working_directory="/etc"))
    assert result.stdout == b"/etc\n"


async def test_execute_of_an_absent_program_fails_with_words(guest: Guest) -> None:
    result = await guest.agent.execute(guest.vm_id, GuestCommand("no-such-program"))
    assert result.exit_code == 127
    assert b"not found" in result.stderr


async def test_execute_beyond_its_time_limit_is_killed_with_what_it_started(guest: Guest) -> None:
    began_s = time.monotonic()
    script = "echo begun; sleep 77"
    result = await guest.agent.execute(guest.vm_id, GuestCommand("sh", ("-c", script), time_limit_s=1))
    assert time.monotonic() - began_s < 60
    assert (result.has_timed_out, result.was_killed, result.exit_code) == (True, True, None)
    assert result.stdout == b"begun\n"
    if guest.is_real:
        assert "sleep 77" not in await guest.sh("ps")


async def test_execute_output_beyond_the_bound_is_cut_and_the_agent_lives_on(guest: Guest) -> None:
    command = GuestCommand("head", ("-c", "3000000", "/dev/zero"))
    result = await guest.agent.execute(guest.vm_id, command)
    assert (result.exit_code, result.stdout, result.is_stdout_cut) == (0, bytes(MAX_OUTPUT_BYTES), True)
    assert not result.is_stderr_cut
    assert (await guest.agent.execute(guest.vm_id, GuestCommand("true"))).exit_code == 0


async def test_execute_without_waiting_says_nothing_of_the_end(guest: Guest) -> None:
    result = await guest.agent.execute(guest.vm_id, GuestCommand("true", waits=False))
    assert (result.exit_code, result.has_timed_out) == (None, False)


async def test_execute_of_many_at_once_keeps_them_apart(guest: Guest) -> None:
    results = await asyncio.gather(
        *(guest.agent.execute(guest.vm_id, GuestCommand("echo", (str(number),))) for number in range(8))
    )
    assert [result.stdout for result in results] == [f"{number}\n".encode() for number in range(8)]


async def test_write_then_read_gives_the_file_back(guest: Guest) -> None:
    data = bytes(range(256)) * (MAX_FILE_BYTES // 256)
    await guest.agent.write_file(guest.vm_id, "/tmp/file one", data, 0o600, makes_parents=False)
    file = await guest.agent.read_file(guest.vm_id, "/tmp/file one", MAX_FILE_BYTES)
    assert (file.data, file.size_bytes) == (data, len(data))
    part = await guest.agent.read_file(guest.vm_id, "/tmp/file one", 300_000)
    assert (part.data, part.size_bytes) == (data[:300_000], len(data))
    if guest.is_real:
        assert await guest.sh("stat -c '%a %s' '/tmp/file one'") == f"600 {len(data)}\n"


async def test_write_replaces_a_file_whole(guest: Guest) -> None:
    for data in (b"the first and longer one", b"the second", b""):
        await guest.agent.write_file(guest.vm_id, "/tmp/replaced", data, 0, makes_parents=False)
        assert (await guest.agent.read_file(guest.vm_id, "/tmp/replaced", 100)).data == data


async def test_write_makes_parents_only_if_asked_to(guest: Guest) -> None:
    path = "/tmp/new/deep/file"
    with pytest.raises(GuestAgentRefused, match=r"No such file or directory|nonexistent"):
        await guest.agent.write_file(guest.vm_id, path, b"x", 0, makes_parents=False)
    await guest.agent.write_file(guest.vm_id, path, b"x", 0, makes_parents=True)
    assert (await guest.agent.read_file(guest.vm_id, path, 10)).data == b"x"


async def test_write_over_a_directory_is_refused(guest: Guest) -> None:
    with pytest.raises(GuestAgentRefused, match="not a regular file"):
        await guest.agent.write_file(guest.vm_id, "/etc", b"x", 0, makes_parents=False)


async def test_read_of_an_absent_file_is_refused_with_the_agents_words(guest: Guest) -> None:
    with pytest.raises(GuestAgentRefused, match="No such file or directory") as caught:
        await guest.agent.read_file(guest.vm_id, "/no/such\u202e\nfile", 10)
    assert caught.value.words.isprintable()


async def test_set_password_changes_what_the_guest_keeps_and_never_the_password_itself(guest: Guest) -> None:
    before = (await guest.agent.execute(guest.vm_id, GuestCommand("cat", ("/etc/shadow",)))).stdout
    await guest.agent.set_password(guest.vm_id, "root", "s3cret word")
    after = await guest.sh("cat /etc/shadow")
    assert after.encode() != before
    assert "s3cret" not in after


async def test_sync_time_says_how_far_the_guest_was_ahead(guest: Guest) -> None:
    if guest.is_real:
        await guest.sh(f"date -s @{int(time.time()) + 1000}")
        assert 900 < await guest.agent.sync_time(guest.vm_id) < 1010  # the command may be late
    assert abs(await guest.agent.sync_time(guest.vm_id)) < 30


async def test_freeze_holds_writes_until_the_thaw(guest: Guest) -> None:
    if guest.is_real:
        await guest.sh("mke2fs -q /dev/vda && mkdir -p /mnt && mount -t ext4 /dev/vda /mnt", 60)
        (system,) = await guest.agent.file_systems(guest.vm_id)
        assert (system.mount_point, system.kind) == ("/mnt", "ext4")
        assert 0 < system.used_bytes < system.total_bytes <= DISK_MIB * 2**20
    assert await guest.agent.freeze_status(guest.vm_id) is FreezeStatus.THAWED
    assert await guest.agent.freeze(guest.vm_id) == 1
    assert await guest.agent.freeze_status(guest.vm_id) is FreezeStatus.FROZEN
    with pytest.raises(GuestAgentRefused):
        await guest.agent.execute(guest.vm_id, GuestCommand("true"))
    assert await guest.agent.thaw(guest.vm_id) == 1
    assert await guest.agent.thaw(guest.vm_id) == 0
    assert await guest.agent.freeze_status(guest.vm_id) is FreezeStatus.THAWED


async def test_paused_vm_has_no_agent_to_ask(guest: Guest) -> None:
    await guest.backend.pause(guest.vm_id)
    with pytest.raises(WrongState):
        await guest.agent.ping(guest.vm_id)
    await guest.backend.resume(guest.vm_id)
    await guest.agent.ping(guest.vm_id)


async def test_vm_that_is_off_or_absent_has_no_agent_to_ask(guest: Guest) -> None:
    with pytest.raises(VmNotFound):
        await guest.agent.ping(str(uuid.uuid4()))
    config = dataclasses.replace(guest.config, vm_id=str(uuid.uuid4()), name="off", disks=(), nics=())
    await guest.backend.create(config)
    with pytest.raises(WrongState):
        await guest.agent.ping(config.vm_id)
    await guest.backend.delete(config.vm_id)


async def test_shut_down_by_the_agent_ends_and_restarts_the_guest(guest: Guest) -> None:
    """Last, since the guest is off after it."""

    async def off() -> bool | None:
        return (await guest.backend.status(guest.vm_id)).state is PowerState.STOPPED or None

    async def restarted() -> bool | None:
        try:
            presence = await guest.agent.ping(guest.vm_id)
        except (GuestAgentAbsent, GuestAgentSilent):
            return None
        assert presence.uptime_s is not None
        return presence.uptime_s <= time.monotonic() - asked_s or None  # one from before is older

    asked_s = time.monotonic()
    await guest.agent.shut_down(guest.vm_id, reboots=True)
    await eventually(restarted, "the restart of the guest", BOOT_DEADLINE_S)
    await guest.agent.shut_down(guest.vm_id)
    await eventually(off, "the end of the guest")
    with pytest.raises(WrongState):
        await guest.agent.ping(guest.vm_id)
