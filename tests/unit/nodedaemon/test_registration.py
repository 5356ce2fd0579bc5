"""Registration and heartbeats, with a control plane that fails as told and waits that take no time."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.faults import Failure, Fault, MockFaults, Operation
from hypervisor.types import Capabilities, VmStatus
from limiquantix.compute.v1 import node_pb2
from limiquantix.compute.v1 import node_service_pb2 as pb
from limiquantix.errors import ApiError, NotFound, Reason, Unavailable
from limiquantix.rpc.validation import violations_of
from nodedaemon import host_report
from nodedaemon.change_count import StateChanges
from nodedaemon.host_meter import HostMeter
from nodedaemon.host_report import HostReport
from nodedaemon.observer import VmObserver
from nodedaemon.registration import (
    FAILURES_UNTIL_REGISTRATION,
    HEARTBEATS_UNTIL_LOOK,
    Registration,
    lasting_facts,
)
from nodedaemon.reporter import Reporter
from nodedaemon.self_fencing.keeper import SelfFencing
from nodedaemon.self_fencing.lease import boottime_ns
from nodedaemon.self_fencing.memory import open_memory
from telemetry.host import read_host_facts

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
    pause_s: float = 0.0
    """How long every wait really takes."""

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
        await asyncio.sleep(self.pause_s)


def ok(**fields: int | bool) -> pb.UpdateHeartbeatResponse:
    return pb.UpdateHeartbeatResponse(acknowledged=True, **fields)  # type: ignore[arg-type]


async def told(
    tmp_path: Path,
    registrations: Iterable[ApiError | None],
    heartbeats: Iterable[ApiError | pb.UpdateHeartbeatResponse],
    *,
    prepare: Callable[[MockHypervisor], None] = lambda hypervisor: None,
    jitter: float = 0.5,
    listen: str = "127.0.0.1:0",
    pause_s: float = 0.0,
    on_revocation: Callable[[datetime], None] = lambda at: None,
) -> ScriptedControlPlane:
    """Run a registration through the script."""
    hypervisor = MockHypervisor()
    await hypervisor.open()
    prepare(hypervisor)
    observer = VmObserver(hypervisor, StateChanges(1))
    report = HostReport(
        hypervisor, observer, HostMeter(hypervisor, tmp_path), hostname="h1", labels={"rack": "r1"}, node_id=""
    )
    report.serve_at(listen, 9090, "")
    control_plane = ScriptedControlPlane(iter(registrations), iter(heartbeats), pause_s=pause_s)
    reporter = Reporter(observer, control_plane, report.full_state)
    registration = Registration(
        control_plane,
        report,
        reporter,
        30.0,
        on_revocation=on_revocation,
        sleep=control_plane.sleep,
        jitter=lambda: jitter,
    )
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


async def test_revocation_that_an_answer_tells_of_is_passed_on(tmp_path: Path) -> None:
    revoked_at = datetime(2026, 1, 1, 12, 0, 0, 250_000, tzinfo=UTC)
    answer = ok()
    answer.newest_revocation.FromDatetime(revoked_at)
    heard: list[datetime] = []

    await told(tmp_path, [None], [ok(), answer], on_revocation=heard.append)

    assert heard == [revoked_at]


async def test_failed_registration_is_retried_doubling_up_to_five_seconds(tmp_path: Path) -> None:
    control_plane = await told(tmp_path, [DOWN] * 8, [])
    waits = [entry for entry in control_plane.log if entry != "register"]
    assert waits == ["1s", "2s", "4s", "5s", "5s", "5s", "5s", "5s"]


@pytest.mark.parametrize(("jitter", "first"), [(0.0, "0.8s"), (1.0, "1.2s")])
async def test_retry_varies_by_a_fifth(tmp_path: Path, jitter: float, first: str) -> None:
    assert (await told(tmp_path, [DOWN], [], jitter=jitter)).log[1] == first


async def test_interval_of_the_answer_is_taken_over(tmp_path: Path) -> None:
    control_plane = await told(tmp_path, [None], [ok(heartbeat_interval_secs=5), ok()])
    assert control_plane.log == ["register", "beat", "5s", "beat", "5s", "beat"]


async def test_heartbeat_that_failed_is_repeated_soon_since_the_lease_hangs_on_it(tmp_path: Path) -> None:
    control_plane = await told(tmp_path, [None], [DOWN, DOWN, ok(heartbeat_interval_secs=2), DOWN, DOWN])
    waits = [entry for entry in control_plane.log if entry not in ("register", "beat")]
    assert waits == ["1s", "2s", "2s", "1s", "2s"]


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
    report = HostReport(hypervisor, observer, HostMeter(hypervisor, tmp_path), hostname="h1", labels={}, node_id="")
    report.serve_at("127.0.0.1:0", 9090, "")
    control_plane = ScriptedControlPlane(iter([None]), iter([ok()] * 10))
    reporter = Reporter(observer, control_plane, report.full_state)
    began_s = time.monotonic()
    with pytest.raises(EndOfStory):
        async with asyncio.timeout(30):
            await Registration(control_plane, report, reporter, 0.05).run()
    assert control_plane.log.count("beat") == 11
    assert time.monotonic() - began_s >= 10 * 0.05


async def test_host_that_changed_registers_again_after_some_heartbeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = read_host_facts()  # this machine itself changes: other tests make bridges and cards
    monkeypatch.setattr(host_report, "read_host_facts", lambda: facts)
    networks = itertools.chain([("default",)], itertools.repeat(("default", "dmz")))
    registered: list[None] = []

    def answers() -> Iterator[ApiError | None]:
        for _ in range(2):
            registered.append(None)
            yield None

    def beats() -> Iterator[ApiError | pb.UpdateHeartbeatResponse]:
        while len(registered) < 2:  # the look takes what time it takes
            yield ok()
        yield from [ok()] * 100

    control_plane = await told(
        tmp_path,
        answers(),
        beats(),
        prepare=lambda h: setattr(h, "capabilities", _with_networks(h, networks)),
        pause_s=0.005,
    )
    calls = [entry for entry in control_plane.log if entry in ("register", "beat")]
    again = calls.index("register", 1)
    assert calls.count("register") == 2
    assert again > HEARTBEATS_UNTIL_LOOK  # no heartbeat waits for the look, so it is not at once
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


# -- several instances of one control plane


@dataclass
class Instance:
    """One of several: answers, refuses or hangs as told, and counts."""

    answer: ApiError | pb.UpdateHeartbeatResponse | None
    beats: list[pb.UpdateHeartbeatRequest] = field(default_factory=list)
    registration_count: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def register(self, request: pb.RegisterNodeRequest) -> node_pb2.Node:
        self.registration_count += 1
        return node_pb2.Node(id=NODE_ID)

    async def heartbeat(self, request: pb.UpdateHeartbeatRequest) -> pb.UpdateHeartbeatResponse:
        assert violations_of(request) == []
        self.beats.append(request)
        self.news.set()
        if self.answer is None:
            await asyncio.sleep(60)
        if isinstance(self.answer, ApiError):
            raise self.answer
        assert self.answer is not None
        return self.answer

    async def sync_full_state(self, request: pb.SyncFullStateRequest) -> pb.SyncFullStateResponse:
        raise AssertionError("the reporter does not run here")

    async def notify_vm_change(self, request: pb.VMChangeNotification) -> pb.VMChangeAck:
        raise AssertionError("the reporter does not run here")

    async def has_heard(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.beats) < count:
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def registered(
    directory: Path, *instances: Instance, hypervisor: MockHypervisor | None = None
) -> AsyncIterator[SelfFencing]:
    hypervisor = hypervisor or MockHypervisor()
    await hypervisor.open()
    observer = VmObserver(hypervisor, StateChanges(1))
    report = HostReport(hypervisor, observer, HostMeter(hypervisor, directory), hostname="h1", labels={}, node_id="")
    report.serve_at("127.0.0.1:0", 9090, "")
    reporter = Reporter(observer, instances[0], report.full_state)
    memory = open_memory(directory)
    fencing = SelfFencing(memory, hypervisor.processes, None, boot_id="boot-1")
    registration = Registration(instances[0], report, reporter, 0.02, instances=instances, fencing=fencing)
    running = asyncio.create_task(registration.run())
    try:
        yield fencing
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        memory.close()


async def test_what_follows_the_first_registration_holds_up_no_heartbeat(tmp_path: Path) -> None:
    hypervisor, called = MockHypervisor(), []
    await hypervisor.open()
    report = HostReport(
        hypervisor, VmObserver(hypervisor, StateChanges(1)), HostMeter(hypervisor, tmp_path), hostname="h1", labels={},
        node_id="",
    )  # fmt: skip
    report.serve_at("127.0.0.1:0", 9090, "")
    control_plane = ScriptedControlPlane(iter([None, None]), iter([ok(), FORGOTTEN, ok()]))
    reporter = Reporter(VmObserver(hypervisor, StateChanges(1)), control_plane, report.full_state)

    async def hang() -> None:
        called.append(report.node_id)
        await asyncio.Event().wait()

    registration = Registration(
        control_plane, report, reporter, 30.0, sleep=control_plane.sleep, jitter=lambda: 0.5, once_registered=hang
    )
    with pytest.raises(EndOfStory):
        await registration.run()
    assert called == [NODE_ID]
    assert control_plane.log.count("beat") == 4
    assert control_plane.log.count("register") == 2


class Looked(MockHypervisor):
    """Does something whenever its VMs are listed."""

    on_list: Callable[[], Awaitable[None]] | None = None

    async def list(self) -> Sequence[VmStatus]:
        if self.on_list is not None:
            await self.on_list()
        return await super().list()


async def test_fence_that_is_learnt_while_the_host_is_looked_at_is_told_with_the_next_look(tmp_path: Path) -> None:
    hypervisor, instance = Looked(), Instance(pb.UpdateHeartbeatResponse(acknowledged=True))
    async with registered(tmp_path, instance, hypervisor=hypervisor) as fencing:

        async def learn() -> None:
            if instance.registration_count:
                await fencing.take_told(1, 7)

        hypervisor.on_list = learn
        await instance.has_heard(2)

    told = [beat.known_fence_token for beat in instance.beats[:2]]
    assert told == [0, 7], "VMs that were started before are counted only by a look that began after"


def leased(duration_ms: int) -> pb.UpdateHeartbeatResponse:
    lease = pb.NodeLease(duration_ms=duration_ms)
    return pb.UpdateHeartbeatResponse(acknowledged=True, lease=lease, epoch=1, ha_version=1, ha_is_armed=True)


async def test_every_instance_is_sent_heartbeats_and_one_that_hangs_delays_no_other(tmp_path: Path) -> None:
    well, hung, down = Instance(ok()), Instance(None), Instance(DOWN)
    async with registered(tmp_path, well, hung, down):
        await well.has_heard(10)
        await down.has_heard(10)
    assert len(hung.beats) == 1
    assert well.registration_count == 1  # one that answers is enough


async def test_lease_is_that_of_whichever_instance_grants_the_longest(tmp_path: Path) -> None:
    short, long, none = Instance(leased(20_000)), Instance(leased(60_000)), Instance(ok())
    async with registered(tmp_path, short, long, none) as fencing:
        for instance in (short, long, none):
            await instance.has_heard(4)
        left_ms = fencing.lease.left_ms(boottime_ns())
    assert 20_000 < left_ms <= 60_000
    assert none.beats[-1].lease_left_ms > 20_000  # each is told of it
    assert (none.beats[-1].known_ha_version, none.beats[-1].known_epoch) == (1, 1)


async def test_three_failures_in_a_row_lead_to_registration_while_heartbeats_go_on(tmp_path: Path) -> None:
    plane = Instance(ok())
    async with registered(tmp_path, plane):
        await plane.has_heard(3)
        plane.answer = DOWN
        failing_from = len(plane.beats)
        async with asyncio.timeout(30):
            while plane.registration_count < 2:  # noqa: ASYNC110 - registering wakes nobody
                await asyncio.sleep(0.01)
        heard = len(plane.beats)
        assert heard >= failing_from + FAILURES_UNTIL_REGISTRATION
        await plane.has_heard(heard + 3)


async def test_host_registers_again_when_no_instance_answers_any_more(tmp_path: Path) -> None:
    first, second = Instance(ok()), Instance(DOWN)
    async with registered(tmp_path, first, second):
        await first.has_heard(3)
        assert first.registration_count == 1
        first.answer = DOWN
        async with asyncio.timeout(30):
            while first.registration_count < 2:  # noqa: ASYNC110 - registering wakes nobody
                await asyncio.sleep(0.01)


async def test_instance_that_does_not_know_the_node_has_it_register(tmp_path: Path) -> None:
    first, second = Instance(ok()), Instance(FORGOTTEN)
    async with registered(tmp_path, first, second):
        async with asyncio.timeout(30):
            while first.registration_count < 2:  # noqa: ASYNC110 - registering wakes nobody
                await asyncio.sleep(0.01)
        second.answer = ok()
