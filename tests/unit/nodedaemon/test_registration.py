"""Registration and heartbeats, with a control plane that fails as told and waits that take no time."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.faults import Failure, Fault, MockFaults, Operation
from hypervisor.types import Capabilities
from limiquantix.compute.v1 import node_pb2
from limiquantix.compute.v1 import node_service_pb2 as pb
from limiquantix.errors import ApiError, NotFound, Reason, Unavailable
from limiquantix.rpc.validation import violations_of
from nodedaemon.change_count import StateChanges
from nodedaemon.host_report import HostReport
from nodedaemon.observer import VmObserver
from nodedaemon.registration import HEARTBEATS_UNTIL_LOOK, Registration, lasting_facts
from nodedaemon.reporter import Reporter
from telemetry.host import UsageSampler

DOWN = Unavailable(Reason.NODE_UNREACHABLE, "down")
FORGOTTEN = NotFound(Reason.NODE_NOT_FOUND, "who?")
NODE_ID = str(uuid.uuid4())


class EndOfStory(Exception):
    """Ends a run when the script is used up."""


@dataclass
class ScriptedControlPlane:
    """Answers each call by the next entry of its script; `log` names what was called and slept."""

    registrations: Iterator[ApiError | None]
    heartbeats: Iterator[ApiError | pb.UpdateHeartbeatResponse]
    log: list[str] = field(default_factory=list)
    requests: list[pb.RegisterNodeRequest | pb.UpdateHeartbeatRequest] = field(default_factory=list)

    async def register(self, request: pb.RegisterNodeRequest) -> node_pb2.Node:
        self._take("register", request)
        answer = next(self.registrations, EndOfStory())
        if isinstance(answer, Exception):
            raise answer
        return node_pb2.Node(id=NODE_ID)

    async def heartbeat(self, request: pb.UpdateHeartbeatRequest) -> pb.UpdateHeartbeatResponse:
        self._take("beat", request)
        answer = next(self.heartbeats, EndOfStory())
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def sync_full_state(self, request: pb.SyncFullStateRequest) -> pb.SyncFullStateResponse:
        raise AssertionError("the reporter does not run here")

    async def notify_vm_change(self, request: pb.VMChangeNotification) -> pb.VMChangeAck:
        raise AssertionError("the reporter does not run here")

    def _take(self, name: str, request: pb.RegisterNodeRequest | pb.UpdateHeartbeatRequest) -> None:
        assert violations_of(request) == []
        self.log.append(name)
        self.requests.append(request)

    async def sleep(self, delay_s: float) -> None:
        self.log.append(f"{delay_s:g}s")


def ok(**fields: int | bool) -> pb.UpdateHeartbeatResponse:
    return pb.UpdateHeartbeatResponse(acknowledged=True, **fields)  # type: ignore[arg-type]


async def told(
    tmp_path: Path,
    registrations: list[ApiError | None],
    heartbeats: list[ApiError | pb.UpdateHeartbeatResponse],
    *,
    prepare: Callable[[MockHypervisor], None] = lambda hypervisor: None,
    jitter: float = 0.5,
    listen: str = "127.0.0.1:0",
) -> ScriptedControlPlane:
    """Run a registration through the script."""
    hypervisor = MockHypervisor()
    await hypervisor.open()
    prepare(hypervisor)
    observer = VmObserver(hypervisor, StateChanges(1))
    report = HostReport(hypervisor, observer, UsageSampler(tmp_path), hostname="h1", labels={"rack": "r1"}, node_id="")
    report.serve_at(listen, 9090, "")
    control_plane = ScriptedControlPlane(iter(registrations), iter(heartbeats))
    reporter = Reporter(observer, control_plane, report.full_state)
    registration = Registration(control_plane, report, reporter, 30.0, sleep=control_plane.sleep, jitter=lambda: jitter)
    with pytest.raises(EndOfStory):
        async with asyncio.timeout(30):
            await registration.run()
    return control_plane


async def test_first_heartbeat_follows_registration_at_once_and_others_every_interval(tmp_path: Path) -> None:
    control_plane = await told(tmp_path, [None], [ok(), ok()])
    assert control_plane.log == ["register", "beat", "30s", "beat", "30s", "beat"]
    beat = control_plane.requests[1]
    assert isinstance(beat, pb.UpdateHeartbeatRequest)
    assert beat.node_id == NODE_ID


async def test_failed_registration_is_retried_doubling_up_to_a_minute(tmp_path: Path) -> None:
    control_plane = await told(tmp_path, [DOWN] * 8, [])
    waits = [entry for entry in control_plane.log if entry != "register"]
    assert waits == ["1s", "2s", "4s", "8s", "16s", "32s", "60s", "60s"]


@pytest.mark.parametrize(("jitter", "first"), [(0.0, "0.8s"), (1.0, "1.2s")])
async def test_retry_varies_by_a_fifth(tmp_path: Path, jitter: float, first: str) -> None:
    assert (await told(tmp_path, [DOWN], [], jitter=jitter)).log[1] == first


async def test_interval_of_the_answer_is_taken_over(tmp_path: Path) -> None:
    control_plane = await told(tmp_path, [None], [ok(heartbeat_interval_secs=5), ok()])
    assert control_plane.log == ["register", "beat", "5s", "beat", "5s", "beat"]


async def test_three_failures_in_a_row_lead_to_registration(tmp_path: Path) -> None:
    control_plane = await told(tmp_path, [None, None], [DOWN, DOWN, ok(), DOWN, DOWN, DOWN])
    assert control_plane.log.count("register") == 2
    assert control_plane.log[-3:] == ["beat", "register", "beat"]


async def test_node_that_was_forgotten_registers_at_once(tmp_path: Path) -> None:
    control_plane = await told(tmp_path, [None, None], [FORGOTTEN])
    assert control_plane.log == ["register", "beat", "register", "beat"]


async def test_hypervisor_that_does_not_answer_makes_a_heartbeat_without_vms(tmp_path: Path) -> None:
    control_plane = await told(
        tmp_path,
        [None],
        [ok()],
        prepare=lambda h: h.set_faults(MockFaults((Fault(Operation.LIST, Failure.UNAVAILABLE),))),
    )
    beat = control_plane.requests[1]
    assert isinstance(beat, pb.UpdateHeartbeatRequest)
    assert beat.state_hash == ""
    assert beat.memory_total_mib > 0


async def test_wildcard_listener_is_reached_at_the_management_ip(tmp_path: Path) -> None:
    control_plane = await told(tmp_path, [None], [], listen="0.0.0.0:9090")
    registration = control_plane.requests[0]
    assert isinstance(registration, pb.RegisterNodeRequest)
    assert registration.agent_endpoint == f"{registration.management_ip}:9090"


async def test_heartbeats_keep_their_interval_while_the_clock_of_the_host_jumps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.cycle((4e9, 0.0, 1.7e9))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    hypervisor = MockHypervisor()
    await hypervisor.open()
    observer = VmObserver(hypervisor, StateChanges(1))
    report = HostReport(hypervisor, observer, UsageSampler(tmp_path), hostname="h1", labels={}, node_id="")
    report.serve_at("127.0.0.1:0", 9090, "")
    control_plane = ScriptedControlPlane(iter([None]), iter([ok()] * 10))
    reporter = Reporter(observer, control_plane, report.full_state)
    began_s = time.monotonic()
    with pytest.raises(EndOfStory):
        async with asyncio.timeout(30):
            await Registration(control_plane, report, reporter, 0.05).run()
    assert control_plane.log.count("beat") == 11
    assert time.monotonic() - began_s >= 10 * 0.05


async def test_host_that_changed_registers_again_after_some_heartbeats(tmp_path: Path) -> None:
    networks = iter([("default",), *[("default", "dmz")] * 99])
    beats: list[ApiError | pb.UpdateHeartbeatResponse] = [ok()] * (2 * HEARTBEATS_UNTIL_LOOK + 3)
    control_plane = await told(
        tmp_path,
        [None, None],
        beats,
        prepare=lambda h: setattr(h, "capabilities", _with_networks(h, networks)),
    )
    calls = [entry for entry in control_plane.log if entry in ("register", "beat")]
    again = calls.index("register", 1)
    assert calls.count("register") == 2
    assert again <= HEARTBEATS_UNTIL_LOOK + 1
    told_now = [request for request in control_plane.requests if isinstance(request, pb.RegisterNodeRequest)]
    assert list(told_now[-1].host_networks) == ["default", "dmz"]


def test_what_changes_by_itself_is_no_change_of_the_host() -> None:
    request = pb.RegisterNodeRequest(hostname="h", bridges=["br0"])
    request.storage_domains.add(id=NODE_ID, free_bytes=1)
    request.devices.add(address="0000:00:03.0", used_by_vm_id=NODE_ID, driver="vfio-pci")
    request.network_devices.add(name="eth0", speed_mbps=1000)
    request.system.uptime_seconds = 5
    other = pb.RegisterNodeRequest(hostname="h", bridges=["br0"])
    other.storage_domains.add(id=NODE_ID, free_bytes=2)
    other.devices.add(address="0000:00:03.0", driver="e1000e")
    other.network_devices.add(name="eth0")
    assert lasting_facts(request) == lasting_facts(other)
    other.bridges.append("br1")
    assert lasting_facts(request) != lasting_facts(other)


def _with_networks(
    hypervisor: MockHypervisor, networks: Iterator[tuple[str, ...]]
) -> Callable[[], Awaitable[Capabilities]]:
    """Make a host whose networks are others at some later look; heartbeats look too."""
    tell = hypervisor.capabilities

    async def capabilities() -> Capabilities:
        return replace(await tell(), host_networks=next(networks))

    return capabilities
