"""What the daemon lets be asked of agents, on the mock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from hypervisor.errors import GuestAgentAbsent
from hypervisor.guests import FreezeStatus, GuestAgents
from hypervisor.mock.faults import MockFaults
from limiquantix.errors import Aborted, ApiError, DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound
from limiquantix.node.v1 import node_daemon_pb2 as pb
from tests.support.builders import make_id
from tests.support.node_daemon_parts import NodeDaemonParts, node_daemon_parts
from tests.support.private_libvirt_host import eventually

DEADLINE_S = 60


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[NodeDaemonParts]:
    async with node_daemon_parts(tmp_path) as parts:
        yield parts
        await parts.servicer.close()


def agents(daemon: NodeDaemonParts) -> GuestAgents:
    assert daemon.hypervisor.guests is not None
    return daemon.hypervisor.guests


@pytest.fixture
async def vm_id(daemon: NodeDaemonParts) -> str:
    """A VM whose agent answers."""
    vm_id = await daemon.create()
    await daemon.start(vm_id)

    async def look() -> bool | None:
        try:
            await agents(daemon).ping(vm_id)
        except GuestAgentAbsent:
            return None
        return True

    await eventually(look, "the agent's first answer", DEADLINE_S)
    return vm_id


async def test_ping_and_info_tell_what_the_agent_does(daemon: NodeDaemonParts, vm_id: str) -> None:
    pong = await daemon.servicer.PingGuestAgent(pb.GuestRequest(vm_id=vm_id), None)
    info = await daemon.servicer.GetGuestInfo(pb.GetGuestInfoRequest(vm_id=vm_id.upper()), None)
    assert pong.version == info.agent_version != ""
    assert (info.hostname, info.os_name) == ("web", "Simulated Linux")
    assert [system.mount_point for system in info.file_systems] == ["/"]
    assert [user.name for user in info.users] == ["root"]
    assert [nic.name for nic in info.interfaces] == ["lo"]


async def test_execute_gives_both_outputs_and_the_exit_code(daemon: NodeDaemonParts, vm_id: str) -> None:
    request = pb.ExecuteInGuestRequest(
        vm_id=vm_id, command="sh", args=["-c", "echo out; echo err >&2; exit 3"], wait_for_exit=True
    )
    result = await daemon.servicer.ExecuteInGuest(request, None)
    assert (result.exit_code, result.stdout, result.stderr, result.timed_out) == (3, b"out\n", b"err\n", False)


async def test_execute_without_waiting_has_no_exit_code(daemon: NodeDaemonParts, vm_id: str) -> None:
    result = await daemon.servicer.ExecuteInGuest(pb.ExecuteInGuestRequest(vm_id=vm_id, command="false"), None)
    assert not result.HasField("exit_code")


async def test_execute_beyond_its_time_limit_is_timed_out(daemon: NodeDaemonParts, vm_id: str) -> None:
    request = pb.ExecuteInGuestRequest(vm_id=vm_id, command="sleep", args=["77"], timeout_seconds=1, wait_for_exit=True)
    result = await daemon.servicer.ExecuteInGuest(request, None)
    assert (result.timed_out, result.killed, result.HasField("exit_code")) == (True, True, False)


async def test_execute_of_a_command_that_is_too_long_is_refused_with_the_bound(
    daemon: NodeDaemonParts, vm_id: str
) -> None:
    request = pb.ExecuteInGuestRequest(vm_id=vm_id, command="echo", args=["x" * 65536])
    with pytest.raises(InvalidArgument, match="65536 bytes"):
        await daemon.servicer.ExecuteInGuest(request, None)


async def test_file_written_is_read_back_also_after_a_reboot(daemon: NodeDaemonParts, vm_id: str) -> None:
    write = pb.WriteGuestFileRequest(vm_id=vm_id, path="/srv/a", data=b"\x00\xff", create_parents=True)
    await daemon.servicer.WriteGuestFile(write, None)
    await daemon.servicer.RebootVM(pb.VMIdRequest(vm_id=vm_id), None)

    async def look() -> pb.ReadGuestFileResponse | None:
        try:
            return await daemon.servicer.ReadGuestFile(pb.ReadGuestFileRequest(vm_id=vm_id, path="/srv/a"), None)
        except FailedPrecondition:  # not up yet
            return None

    read = await eventually(look, "the file after the reboot", DEADLINE_S)
    assert (read.data, read.size_bytes) == (b"\x00\xff", 2)


async def test_read_of_an_absent_file_fails_with_the_agents_words(daemon: NodeDaemonParts, vm_id: str) -> None:
    with pytest.raises(FailedPrecondition, match="No such file") as caught:
        await daemon.servicer.ReadGuestFile(pb.ReadGuestFileRequest(vm_id=vm_id, path="/nothing"), None)
    assert caught.value.reason == "GUEST_AGENT_REFUSED"


@pytest.mark.parametrize(
    ("faults", "kind", "reason"),
    [
        (
            lambda vm_id: MockFaults(absent_agent_vm_ids=frozenset({vm_id})),
            FailedPrecondition,
            "GUEST_AGENT_ABSENT",
        ),
        (
            lambda vm_id: MockFaults(silent_agent_vm_ids=frozenset({vm_id})),
            DeadlineExceeded,
            "GUEST_AGENT_SILENT",
        ),
        (
            lambda vm_id: MockFaults(garbage_agent_vm_ids=frozenset({vm_id})),
            FailedPrecondition,
            "GUEST_AGENT_REFUSED",
        ),
    ],
    ids=["absent", "silent", "garbage"],
)
async def test_agent_that_cannot_be_asked_is_an_error_with_its_own_reason(
    daemon: NodeDaemonParts, vm_id: str, faults: Callable[[str], MockFaults], kind: type[ApiError], reason: str
) -> None:
    daemon.hypervisor.set_faults(faults(vm_id))
    with pytest.raises(kind) as caught:
        await daemon.servicer.PingGuestAgent(pb.GuestRequest(vm_id=vm_id), None)
    assert caught.value.reason == reason


async def test_agent_of_a_vm_that_is_off_or_absent_cannot_be_asked(daemon: NodeDaemonParts) -> None:
    with pytest.raises(NotFound):
        await daemon.servicer.PingGuestAgent(pb.GuestRequest(vm_id=make_id()), None)
    with pytest.raises(FailedPrecondition) as caught:
        await daemon.servicer.PingGuestAgent(pb.GuestRequest(vm_id=await daemon.create()), None)
    assert caught.value.reason == "VM_STATE_FORBIDS"


async def test_shutdown_ends_the_guest_unless_a_newer_command_was_taken(daemon: NodeDaemonParts, vm_id: str) -> None:
    await daemon.servicer.PauseVM(pb.VMIdRequest(vm_id=vm_id, generation=5), None)
    await daemon.servicer.ResumeVM(pb.VMIdRequest(vm_id=vm_id, generation=6), None)
    with pytest.raises(Aborted):
        await daemon.servicer.ShutdownGuest(pb.ShutdownGuestRequest(vm_id=vm_id, generation=4), None)
    await daemon.servicer.ShutdownGuest(pb.ShutdownGuestRequest(vm_id=vm_id, generation=7), None)
    assert (await daemon.status(vm_id)).state == pb.POWER_STATE_STOPPED


async def test_password_and_time_are_set(daemon: NodeDaemonParts, vm_id: str) -> None:
    await daemon.servicer.SetGuestPassword(
        pb.SetGuestPasswordRequest(vm_id=vm_id, user="root", password="s3cret"), None
    )
    shadow = await agents(daemon).read_file(vm_id, "/etc/shadow", 1000)
    assert shadow.data.startswith(b"root:")
    assert b"s3cret" not in shadow.data
    assert (await daemon.servicer.SyncGuestTime(pb.GuestRequest(vm_id=vm_id), None)).ahead_seconds == 0


async def until_thawed(daemon: NodeDaemonParts, vm_id: str) -> None:
    async def look() -> bool | None:
        return await agents(daemon).freeze_status(vm_id) is FreezeStatus.THAWED or None

    await eventually(look, "the thaw", DEADLINE_S)


async def test_freeze_ends_by_itself(daemon: NodeDaemonParts, vm_id: str) -> None:
    request = pb.FreezeGuestRequest(vm_id=vm_id, thaw_after_seconds=1)
    response = await daemon.servicer.FreezeGuest(request, None)
    assert response.file_system_count == 1
    assert response.thaws_at.seconds > 0
    assert (await daemon.servicer.GetGuestInfo(pb.GetGuestInfoRequest(vm_id=vm_id), None)).frozen
    with pytest.raises(FailedPrecondition):  # and does not put the thaw off
        await daemon.servicer.FreezeGuest(pb.FreezeGuestRequest(vm_id=vm_id, thaw_after_seconds=60), None)
    await until_thawed(daemon, vm_id)


async def test_freeze_is_ended_by_a_thaw_and_by_the_end_of_the_daemon(daemon: NodeDaemonParts, vm_id: str) -> None:
    await daemon.servicer.FreezeGuest(pb.FreezeGuestRequest(vm_id=vm_id), None)
    assert (await daemon.servicer.ThawGuest(pb.GuestRequest(vm_id=vm_id), None)).file_system_count == 1
    assert (await daemon.servicer.ThawGuest(pb.GuestRequest(vm_id=vm_id), None)).file_system_count == 0
    await daemon.servicer.FreezeGuest(pb.FreezeGuestRequest(vm_id=vm_id), None)
    await daemon.servicer.close()
    assert await agents(daemon).freeze_status(vm_id) is FreezeStatus.THAWED


async def test_freeze_of_which_nobody_knows_whether_it_happened_is_thawed_all_the_same(
    daemon: NodeDaemonParts, vm_id: str
) -> None:
    await agents(daemon).freeze(vm_id)  # what the lost call did
    daemon.hypervisor.set_faults(MockFaults(silent_agent_vm_ids=frozenset({vm_id})))
    with pytest.raises(DeadlineExceeded):
        await daemon.servicer.FreezeGuest(pb.FreezeGuestRequest(vm_id=vm_id, thaw_after_seconds=1), None)
    daemon.hypervisor.set_faults(MockFaults())
    await until_thawed(daemon, vm_id)
