"""Into guests by their agents: what is asked of hosts, and how their answers are told."""

from __future__ import annotations

from dataclasses import replace

import pytest
import structlog

from controlplane.domain.vm import PowerState, Vm
from controlplane.services.vm_guests import GuestService
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.errors import ApiError, DeadlineExceeded, FailedPrecondition, NotFound, Reason
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from tests.support.builders import make_id
from tests.support.control_plane_world import World
from tests.support.fake_daemons import unreachable
from tests.support.fake_guests import absent, refused


@pytest.fixture
async def vm(world: World) -> Vm:
    """A VM that runs."""
    await world.add_node()
    return await world.create("web", start=True)


@pytest.fixture
def guests(world: World) -> GuestService:
    return world.guests


def silent() -> DeadlineExceeded:
    return DeadlineExceeded(Reason.GUEST_AGENT_SILENT, "it does not react")


async def stored(world: World, vm: Vm) -> Vm:
    found = await world.stored(vm.id)
    assert found is not None
    return found


# -- looking


async def test_ping_of_an_agent_tells_its_version(guests: GuestService, vm: Vm) -> None:
    answer = await guests.ping(api.PingAgentRequest(vm_id=vm.id))
    assert (answer.connected, answer.version, answer.uptime_seconds, answer.error) == (True, "7.2", 60, "")


@pytest.mark.parametrize("error", [absent(), silent(), refused()], ids=lambda error: error.reason)
async def test_ping_of_an_agent_that_does_not_answer_is_an_answer_with_the_reason(
    world: World, guests: GuestService, vm: Vm, error: ApiError
) -> None:
    world.host_of(vm).fail("ping_guest", error)
    answer = await guests.ping(api.PingAgentRequest(vm_id=vm.id))
    assert (answer.connected, answer.error) == (False, error.message)


async def test_ping_where_the_host_or_the_vm_is_missing_is_an_error(world: World, guests: GuestService, vm: Vm) -> None:
    with pytest.raises(NotFound):
        await guests.ping(api.PingAgentRequest(vm_id=make_id()))
    world.host_of(vm).fail("ping_guest", unreachable())
    with pytest.raises(ApiError) as caught:
        await guests.ping(api.PingAgentRequest(vm_id=vm.id))
    assert caught.value.reason == Reason.NODE_UNREACHABLE


async def test_info_has_file_systems_users_and_addresses(guests: GuestService, vm: Vm) -> None:
    answer = await guests.info(api.GetGuestInfoRequest(vm_id=vm.id))
    assert (answer.info.hostname, answer.info.agent_version) == ("inside", "7.2")
    assert [list(nic.ip_addresses) for nic in answer.interfaces] == [["10.0.0.1"]]
    assert [(each.mount_point, each.used_bytes) for each in answer.file_systems] == [("/", 40)]
    assert [user.name for user in answer.users] == ["ann", "bob"]
    assert answer.users[0].logged_in_at.seconds == 7
    assert not answer.users[1].HasField("logged_in_at")


# -- running


async def run(guests: GuestService, vm: Vm, **fields: object) -> api.ExecuteScriptResponse:
    wanted = {"command": "uname", "wait_for_exit": True, **fields}
    return await guests.execute(api.ExecuteScriptRequest(vm_id=vm.id, **wanted))  # type: ignore[arg-type]


async def test_execute_passes_everything_on(world: World, guests: GuestService, vm: Vm) -> None:
    answer = await run(
        guests,
        vm,
        args=["-a"],
        environment={"A": "b"},
        working_directory="/srv",
        input=b"in",
        timeout_seconds=7,
    )
    assert (answer.success, answer.exit_code, answer.stdout) == (True, 0, "out")
    assert world.host_of(vm).guest_requests[-1] == node_v1.ExecuteInGuestRequest(
        vm_id=vm.id,
        command="uname",
        args=["-a"],
        environment={"A": "b"},
        working_directory="/srv",
        input=b"in",
        timeout_seconds=7,
        wait_for_exit=True,
    )


async def test_execute_of_a_command_that_fails_is_an_answer(world: World, guests: GuestService, vm: Vm) -> None:
    world.host_of(vm).guest_result = node_v1.ExecuteInGuestResponse(exit_code=3, stderr=b"no")
    answer = await run(guests, vm)
    assert (answer.success, answer.exit_code, answer.stderr, answer.error) == (False, 3, "no", "")


async def test_execute_of_a_command_that_cannot_be_started_is_an_answer(
    world: World, guests: GuestService, vm: Vm
) -> None:
    world.host_of(vm).fail("execute_in_guest", refused())
    answer = await run(guests, vm)
    assert (answer.success, answer.exit_code) == (False, -1)
    assert "No such file" in answer.error


@pytest.mark.parametrize(("killed", "words"), [(True, "was killed"), (False, "still runs")])
async def test_execute_of_a_command_that_runs_out_of_time_says_what_became_of_it(
    world: World, guests: GuestService, vm: Vm, killed: bool, words: str
) -> None:
    world.host_of(vm).guest_result = node_v1.ExecuteInGuestResponse(timed_out=True, killed=killed, stdout=b"begun")
    answer = await run(guests, vm)
    assert (answer.success, answer.timed_out, answer.exit_code, answer.stdout) == (False, True, -1, "begun")
    assert words in answer.error


async def test_execute_without_waiting_succeeds_when_it_began(world: World, guests: GuestService, vm: Vm) -> None:
    world.host_of(vm).guest_result = node_v1.ExecuteInGuestResponse()
    answer = await run(guests, vm, wait_for_exit=False)
    assert (answer.success, answer.exit_code) == (True, 0)


async def test_execute_output_that_is_no_text_becomes_text_within_the_bound(
    world: World, guests: GuestService, vm: Vm
) -> None:
    world.host_of(vm).guest_result = node_v1.ExecuteInGuestResponse(
        exit_code=0, stdout=b"\xff" * 2**20, stderr="ä\0".encode(), stderr_cut=True
    )
    answer = await run(guests, vm)
    assert len(answer.stdout.encode()) <= 2**20
    assert set(answer.stdout) == {"\ufffd"}
    assert (answer.stdout_cut, answer.stderr_cut, answer.stderr) == (True, True, "ä\0")


@pytest.mark.parametrize("error", [absent(), silent()], ids=lambda error: error.reason)
async def test_execute_without_an_agent_is_an_error(
    world: World, guests: GuestService, vm: Vm, error: ApiError
) -> None:
    world.host_of(vm).fail("execute_in_guest", error)
    with pytest.raises(type(error)) as caught:
        await run(guests, vm)
    assert caught.value.reason == error.reason


async def test_guest_of_a_vm_that_is_only_shown_is_left_alone(world: World, guests: GuestService, vm: Vm) -> None:
    shown = replace(await stored(world, vm), is_managed=False)
    await world.store.run(lambda tx: tx.update_vm(shown))
    with pytest.raises(FailedPrecondition) as caught:
        await run(guests, vm)
    assert caught.value.reason == Reason.VM_NOT_MANAGED
    assert (await guests.ping(api.PingAgentRequest(vm_id=vm.id))).connected


# -- files, users, clock


async def test_file_is_read_with_its_whole_size(guests: GuestService, vm: Vm) -> None:
    answer = await guests.read_file(api.ReadGuestFileRequest(vm_id=vm.id, path="/a"))
    assert (answer.success, answer.data, answer.total_size, answer.error) == (True, b"contents", 1000, "")


async def test_file_that_cannot_be_read_or_written_is_an_answer(world: World, guests: GuestService, vm: Vm) -> None:
    for method in ("read_guest_file", "write_guest_file"):
        world.host_of(vm).fail(method, refused())
    read = await guests.read_file(api.ReadGuestFileRequest(vm_id=vm.id, path="/a"))
    written = await guests.write_file(api.WriteGuestFileRequest(vm_id=vm.id, path="/a", data=b"x"))
    assert (read.success, written.success, written.bytes_written) == (False, False, 0)
    assert "No such file" in read.error
    assert "No such file" in written.error


async def test_file_is_written_as_asked(world: World, guests: GuestService, vm: Vm) -> None:
    request = api.WriteGuestFileRequest(vm_id=vm.id, path="/a", data=b"xyz", mode=0o600, create_parents=True)
    answer = await guests.write_file(request)
    assert (answer.success, answer.bytes_written) == (True, 3)
    assert world.host_of(vm).guest_requests[-1] == node_v1.WriteGuestFileRequest(
        vm_id=vm.id, path="/a", data=b"xyz", mode=0o600, create_parents=True
    )


async def test_secrets_of_guests_are_in_no_log_and_no_operation(world: World, guests: GuestService, vm: Vm) -> None:
    with structlog.testing.capture_logs() as logs:
        await guests.set_password(api.SetGuestPasswordRequest(vm_id=vm.id, user="root", password="s3cret"))
        await guests.write_file(api.WriteGuestFileRequest(vm_id=vm.id, path="/a", data=b"s3cret"))
        await run(guests, vm, input=b"s3cret", environment={"P": "s3cret"}, args=["s3cret"])
    assert "s3cret" not in repr(logs)
    assert world.host_of(vm).guest_requests[0].password == "s3cret"


async def test_password_that_the_agent_refuses_is_an_error(world: World, guests: GuestService, vm: Vm) -> None:
    world.host_of(vm).fail("set_guest_password", refused("cannot find 'passwd' program in PATH"))
    with pytest.raises(FailedPrecondition, match="passwd"):
        await guests.set_password(api.SetGuestPasswordRequest(vm_id=vm.id, user="root", password="x"))


async def test_time_freeze_and_thaw_answer_what_the_host_does(world: World, guests: GuestService, vm: Vm) -> None:
    assert (await guests.sync_time(api.SyncGuestTimeRequest(vm_id=vm.id))).ahead_seconds == -1.5
    frozen = await guests.freeze(api.FreezeGuestRequest(vm_id=vm.id, thaw_after_seconds=9))
    assert (frozen.file_system_count, frozen.thaws_at.seconds) == (2, 9)
    assert world.host_of(vm).guest_requests[-1].thaw_after_seconds == 9
    assert (await guests.thaw(api.ThawGuestRequest(vm_id=vm.id))).file_system_count == 2


# -- shutting down


async def test_shutdown_is_accepted_and_makes_off_the_wanted_state(world: World, guests: GuestService, vm: Vm) -> None:
    answer = await guests.shut_down(api.GuestShutdownRequest(vm_id=vm.id))
    after = await stored(world, vm)
    assert (answer.accepted, answer.error) == (True, "")
    assert (after.power_state, after.wanted_state) == (PowerState.STOPPED, PowerState.STOPPED)
    await world.keeper.look()
    await world.settle()
    assert (await stored(world, vm)).power_state == PowerState.STOPPED


async def test_shutdown_with_a_delay_leaves_it_running_and_wanted_off(
    world: World, guests: GuestService, vm: Vm
) -> None:
    request = api.GuestShutdownRequest(vm_id=vm.id, delay_seconds=60, message="bye")
    assert (await guests.shut_down(request)).accepted
    after = await stored(world, vm)
    assert (after.power_state, after.wanted_state) == (PowerState.RUNNING, PowerState.STOPPED)
    asked = world.host_of(vm).guest_requests[-1]
    assert (asked.delay_seconds, asked.message, asked.generation > 0) == (60, "bye", True)


async def test_reboot_leaves_what_is_wanted(world: World, guests: GuestService, vm: Vm) -> None:
    assert (await guests.shut_down(api.GuestShutdownRequest(vm_id=vm.id, reboot=True))).accepted
    after = await stored(world, vm)
    assert (after.power_state, after.wanted_state) == (PowerState.RUNNING, PowerState.RUNNING)


async def test_shutdown_that_the_agent_refuses_is_an_answer_and_changes_nothing(
    world: World, guests: GuestService, vm: Vm
) -> None:
    world.host_of(vm).fail("shut_down_guest", refused("the command is disabled"))
    answer = await guests.shut_down(api.GuestShutdownRequest(vm_id=vm.id))
    assert not answer.accepted
    assert "disabled" in answer.error
    after = await stored(world, vm)
    assert (after.power_state, after.wanted_state) == (PowerState.RUNNING, PowerState.RUNNING)


async def test_shutdown_without_an_agent_is_an_error_and_leaves_what_is_wanted(
    world: World, guests: GuestService, vm: Vm
) -> None:
    world.host_of(vm).fail("shut_down_guest", absent())
    with pytest.raises(FailedPrecondition) as caught:
        await guests.shut_down(api.GuestShutdownRequest(vm_id=vm.id))
    assert caught.value.reason == Reason.GUEST_AGENT_ABSENT
    assert (await stored(world, vm)).wanted_state == PowerState.RUNNING


async def test_shutdown_of_a_vm_that_is_off_is_refused(world: World, guests: GuestService) -> None:
    await world.add_node()
    off = await world.create("off")
    with pytest.raises(FailedPrecondition) as caught:
        await guests.shut_down(api.GuestShutdownRequest(vm_id=off.id))
    assert caught.value.reason == Reason.VM_STATE_FORBIDS


async def test_shutdown_repeated_after_a_death_finds_its_work_done(world: World, guests: GuestService, vm: Vm) -> None:
    world.host_of(vm).fail("shut_down_guest", unreachable(), after_acting=True, times=1)
    assert (await guests.shut_down(api.GuestShutdownRequest(vm_id=vm.id))).accepted
    assert world.host_of(vm).methods(vm.id).count("shut_down_guest") == 1
