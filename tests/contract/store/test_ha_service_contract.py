"""What people say to high availability, and what it answers, on every kind of database."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest

from controlplane.domain.event import Event, EventFilter, EventType, Severity
from controlplane.domain.fencing import FenceFilter, FenceState, NodeGuard
from controlplane.domain.ha_times import HaTimes
from controlplane.domain.node import Node, NodeUsage, Phase
from controlplane.domain.query import Cursor
from controlplane.domain.vm import PowerState
from controlplane.ha.model import NodeHealth
from controlplane.power.interface import PowerController, PowerEvidence
from controlplane.services.ha import Forecast, HaService, NodeView, Waiting
from controlplane.services.ha_status import HaStatusService
from controlplane.services.hearing import Heard, Hearing
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1 import ha_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import HaPolicy, VmSpec
from limiquantix.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, Reason
from tests.support.builders import START_OF_TIME, make_id, make_node, make_vm
from tests.support.fences import ended, opened, proven, written
from tests.support.stores import add

TIMES = HaTimes()
NOW = START_OF_TIME + timedelta(days=100)


@dataclass
class Redfish:
    """A controller that is only looked at."""

    kind: str = "redfish"

    async def cut(self, limit_s: float) -> PowerEvidence:
        raise AssertionError("nothing is carried out here")


@dataclass
class Controllers:
    """Of one host there is a controller."""

    hostname: str = ""

    def of(self, hostname: str) -> PowerController | None:
        return Redfish() if hostname == self.hostname else None


@dataclass
class View:
    """What a process that decides, or does not, has in memory."""

    is_leader: bool = False
    obstacle: str = ""
    thought: dict[str, NodeView] = field(default_factory=dict)
    waits: list[Waiting] = field(default_factory=list)

    def nodes(self) -> dict[str, NodeView]:
        return self.thought

    def waiting(self) -> list[Waiting]:
        return self.waits


@dataclass
class Oracle:
    """Foretells the same of every node."""

    says: list[Forecast] = field(default_factory=list)

    async def failures_survived(self) -> int:
        return 1

    async def forecast(self, node_id: str) -> list[Forecast]:
        return self.says


class Scene:
    """One process that has listened for a minute."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now_s = 60.0
        self.hearing = Hearing(began_s=0.0)
        self.view = View()
        self.oracle = Oracle()
        self.controllers = Controllers()
        self.objects_to = ""
        """Id of a node that another process hears while a person's word is waited upon."""

    def clock(self) -> float:
        return self.now_s

    def ha(self, inactive: str = "") -> HaService:
        return HaService(
            self.store, self.hearing, lambda: NOW, TIMES.suspect_after_s, inactive, self.clock, 4.5, self.passes
        )

    async def passes(self, seconds: float) -> None:
        self.now_s += seconds
        if self.objects_to:
            await self.store.run(lambda tx: tx.object_to_fences([self.objects_to], "process-2"))

    async def status(self, *, include_forecast: bool = False) -> api.HaStatus:
        service = HaStatusService(
            store=self.store,
            hearing=self.hearing,
            times=TIMES,
            controllers=self.controllers,
            view=self.view,
            forecaster=self.oracle,
            admission_policy="room for 1 failed node",
            clock=self.clock,
        )
        return await service.read(include_forecast=include_forecast)

    def hear(self, node: Node, ago_s: float, at: datetime = NOW) -> None:
        self.hearing.hear(Heard(node.id, self.now_s - ago_s, at, NodeUsage()))


@pytest.fixture
def scene(store: Store) -> Scene:
    return Scene(store)


@pytest.fixture
async def node(store: Store) -> Node:
    new = make_node(hostname="rack3-12")
    await add(store, new)
    return new


async def types_of(store: Store, resource_id: str) -> list[EventType]:
    return [each.event.type for each in await store.read(lambda tx: tx.newest_events(EventFilter(resource_id), 50))]


# -- fencing by people


async def test_node_is_fenced_once_for_a_person_whether_it_is_well_or_not(scene: Scene, node: Node) -> None:
    scene.hear(node, 0.1)
    fence = await scene.ha().fence_node(node.id, "its disk clicks", "eve")
    assert (fence.state, fence.hostname, fence.token) == (api.Fence.OPEN, "rack3-12", 1)
    assert fence.reason == "eve asked for it: its disk clicks"
    assert await scene.ha().fence_node(node.id, "again", "adam") == fence
    with pytest.raises(NotFound):
        await scene.ha().fence_node(make_id(), "who", "eve")


async def test_fence_of_a_silent_node_becomes_the_persons(scene: Scene, node: Node) -> None:
    await opened(scene.store, node.id)
    fence = await scene.ha().fence_node(node.id, "enough", "eve")
    assert (fence.reason, fence.token) == ("eve asked for it: enough", 1)


async def test_proven_fence_is_returned_as_it_is(scene: Scene, node: Node) -> None:
    await written(scene.store, proven(await opened(scene.store, node.id)))
    fence = await scene.ha().fence_node(node.id, "enough", "eve")
    assert (fence.state, fence.reason) == (api.Fence.PROVEN, "it was silent")


async def test_status_tells_which_nodes_know_what_was_set_last(scene: Scene, node: Node) -> None:
    (said,) = (await scene.status()).nodes
    assert said.settings_version == 0
    newest = (await scene.ha().disarm("new switch", "adam")).version
    await scene.store.run(lambda tx: tx.note_guards([NodeGuard(node.id, newest - 1, True, "", "boot", NOW)]))
    (said,) = (await scene.status()).nodes
    assert said.settings_version == newest - 1
    scene.hearing.hear(Heard(node.id, scene.now_s, NOW, NodeUsage(), known_ha_version=newest))
    (said,) = (await scene.status()).nodes
    assert said.settings_version == newest


async def test_nothing_is_fenced_while_disarmed_or_switched_off(scene: Scene, node: Node) -> None:
    with pytest.raises(FailedPrecondition, match=r"ha\.enabled is false") as off:
        await scene.ha("ha.enabled is false").fence_node(node.id, "enough", "eve")
    assert off.value.reason == Reason.HA_INACTIVE
    await scene.ha().disarm("new switch", "adam")
    with pytest.raises(FailedPrecondition, match=r"adam disarmed .* \(new switch\)"):
        await scene.ha().fence_node(node.id, "enough", "eve")
    with pytest.raises(FailedPrecondition, match="arm it with"):
        await scene.ha().confirm_dead(node.id, node.hostname, "pulled both cords", "eve")
    assert await scene.store.read(lambda tx: tx.current_fences()) == []


# -- a person's word


async def test_persons_word_is_a_proof_that_the_log_keeps(scene: Scene, node: Node) -> None:
    await scene.store.run(lambda tx: tx.take_leadership("leader", "cp-1", START_OF_TIME))
    fence = await scene.ha().confirm_dead(node.id, node.hostname, "pulled both cords", "eve")
    assert (fence.state, fence.epoch) == (api.Fence.PROVEN, 1)
    proof = fence.proof
    assert (proof.method, proof.evidence, proof.witness, proof.epoch) == (
        api.FENCE_METHOD_OPERATOR,
        "pulled both cords",
        "eve",
        1,
    )
    assert await scene.ha().confirm_dead(node.id, node.hostname, "said it before", "adam") == fence

    (entry, *_) = await scene.store.read(lambda tx: tx.newest_events(EventFilter(node.id), 1))
    assert (entry.event.type, entry.event.severity, entry.event.actor) == (
        EventType.NODE_FENCED,
        Severity.CRITICAL,
        "eve",
    )
    assert entry.event.message == "node rack3-12 is fenced: eve says that it is off: pulled both cords"
    assert entry.event.metadata == {"fence_id": fence.id, "token": "1", "method": "FENCE_METHOD_OPERATOR"}
    assert (await types_of(scene.store, node.id)).count(EventType.NODE_FENCED) == 1


async def test_persons_word_proves_the_whole_host_where_the_lease_proved_a_part(scene: Scene, node: Node) -> None:
    before = await written(scene.store, proven(await opened(scene.store, node.id)))
    fence = await scene.ha().confirm_dead(node.id, node.hostname, "pulled both cords", "eve")
    assert (fence.id, fence.proof.method) == (before.id, api.FENCE_METHOD_OPERATOR)


async def test_wrong_host_name_is_refused_with_the_right_one(scene: Scene, node: Node) -> None:
    with pytest.raises(InvalidArgument, match="is host rack3-12, not rack3-11") as refused:
        await scene.ha().confirm_dead(node.id, "rack3-11", "pulled both cords", "eve")
    assert [violation.field for violation in refused.value.violations] == ["hostname"]
    assert await scene.store.read(lambda tx: tx.current_fences()) == []


async def test_host_that_is_heard_is_not_dead_whatever_anybody_says(scene: Scene, node: Node) -> None:
    scene.hear(node, TIMES.suspect_after_s - 1)
    with pytest.raises(FailedPrecondition, match=r"was heard 6\.0 s ago, at 2025-04-11T") as refused:
        await scene.ha().confirm_dead(node.id, node.hostname, "pulled both cords", "eve")
    assert refused.value.reason == Reason.NODE_IS_HEARD
    scene.now_s += 1
    fence = await scene.ha().confirm_dead(node.id, node.hostname, "pulled both cords", "eve")
    assert fence.state == api.Fence.PROVEN


async def test_host_that_another_process_heard_is_not_dead_either(scene: Scene) -> None:
    heard = make_node(hostname="heard", last_heartbeat_at=NOW - timedelta(seconds=3))
    silent = make_node(hostname="given-up")
    await add(scene.store, heard, silent)
    with pytest.raises(FailedPrecondition, match=r"was heard 3\.0 s ago"):
        await scene.ha().confirm_dead(heard.id, heard.hostname, "pulled both cords", "eve")

    await opened(scene.store, silent.id)
    await scene.store.run(lambda tx: tx.object_to_fences([silent.id], "process-2"))
    with pytest.raises(Aborted, match="process-2 heard node"):
        await scene.ha().confirm_dead(silent.id, silent.hostname, "pulled both cords", "eve")
    await scene.ha().fence_node(silent.id, "off with it", "eve")
    confirmed = await scene.ha().confirm_dead(silent.id, silent.hostname, "pulled both cords", "eve")
    assert confirmed.state == api.Fence.PROVEN


@pytest.mark.parametrize("is_fenced_by_person", [False, True])
async def test_process_that_hears_the_host_may_object_to_a_persons_word(
    scene: Scene, node: Node, is_fenced_by_person: bool
) -> None:
    if is_fenced_by_person:
        await scene.ha().fence_node(node.id, "its disk clicks", "eve")
        await scene.store.run(lambda tx: tx.object_to_fences([node.id], "process-2"))
    scene.objects_to = node.id
    with pytest.raises(Aborted, match="process-2 heard node") as refused:
        await scene.ha().confirm_dead(node.id, node.hostname, "pulled both cords", "eve")
    assert refused.value.reason == Reason.FENCE_OBJECTED
    (fence,) = await scene.store.read(lambda tx: tx.current_fences())
    assert (fence.state, fence.heard_by) == (FenceState.OPEN, "process-2")
    assert fence.is_by_operator == is_fenced_by_person


async def test_process_that_hears_the_host_may_object_also_where_its_lease_proved_a_part(
    scene: Scene, node: Node
) -> None:
    proved = await written(scene.store, proven(await opened(scene.store, node.id)))
    scene.objects_to = node.id

    with pytest.raises(Aborted, match="process-2 heard node") as refused:
        await scene.ha().confirm_dead(node.id, node.hostname, "pulled both cords", "eve")

    assert refused.value.reason == Reason.FENCE_OBJECTED
    (fence,) = await scene.store.read(lambda tx: tx.current_fences())
    assert (fence.state, fence.proof) == (FenceState.PROVEN, proved.proof)
    scene.objects_to = ""
    confirmed = await scene.ha().confirm_dead(node.id, node.hostname, "now I pulled both", "eve")
    assert confirmed.proof.method == api.FENCE_METHOD_OPERATOR


async def test_persons_word_does_not_outlive_the_fence_it_was_about(scene: Scene, node: Node) -> None:
    async def withdraw(seconds: float) -> None:
        (fence,) = await scene.store.read(lambda tx: tx.current_fences())
        await written(scene.store, replace(fence, state=FenceState.WITHDRAWN, ended_at=NOW))

    with pytest.raises(Aborted, match="was withdrawn meanwhile"):
        await replace(scene.ha(), sleep=withdraw).confirm_dead(node.id, node.hostname, "pulled both cords", "eve")
    assert await scene.store.read(lambda tx: tx.current_fences()) == []


async def test_process_that_began_just_now_believes_nobody(scene: Scene, node: Node) -> None:
    scene.now_s = TIMES.suspect_after_s - 0.5
    with pytest.raises(FailedPrecondition, match=r"has listened for 6\.5 s only.*repeat in 0\.6 s"):
        await scene.ha().confirm_dead(node.id, node.hostname, "pulled both cords", "eve")


# -- reading fences


async def test_fence_names_the_vms_that_were_started_elsewhere_upon_it(scene: Scene, node: Node) -> None:
    fence = await opened(scene.store, node.id)
    first, second, other = make_vm(), make_vm(), make_vm()
    await add(scene.store, first, second, other)

    async def tell(tx: Transaction) -> None:
        for vm, fence_id in ((first, fence.id), (second, fence.id), (other, make_id()), (first, fence.id)):
            await tx.log_vm_event(vm, Event(EventType.VM_FAILED_OVER, metadata={"fence_id": fence_id}))

    await scene.store.run(tell)
    found = await scene.ha().get(fence.id)
    assert (found.hostname, list(found.restarted_vm_ids)) == ("rack3-12", [first.id, second.id])
    await scene.store.run(lambda tx: tx.delete_node(node.id))
    assert (await scene.ha().get(fence.id)).hostname == ""
    with pytest.raises(NotFound) as refused:
        await scene.ha().get(make_id())
    assert refused.value.reason == Reason.FENCE_NOT_FOUND


async def test_fences_are_listed_with_host_names(scene: Scene, node: Node) -> None:
    over = await written(scene.store, ended(proven(await opened(scene.store, node.id))))
    page = await scene.ha().list(FenceFilter(), Cursor(NOW, make_id()), 10)
    assert [(each.id, each.hostname, each.state) for each in page.items] == [(over.id, "rack3-12", FenceState.ENDED)]
    assert page.items[0].HasField("ended_at")
    assert (await scene.ha().list(FenceFilter(only_current=True), None, 10)).total_count == 0


# -- settings


async def test_disarming_and_arming_are_said_once_each(scene: Scene) -> None:
    disarmed = await scene.ha().disarm("new switch", "eve")
    assert (disarmed.is_armed, disarmed.reason, disarmed.version) == (False, "new switch", 2)
    assert disarmed.changed_by == "eve"
    assert await scene.ha().disarm("another reason", "adam") == disarmed
    armed = await scene.ha().arm("adam")
    assert (armed.is_armed, armed.reason, armed.changed_by, armed.version) == (True, "", "adam", 3)
    assert await scene.ha().arm("eve") == armed
    assert await types_of(scene.store, "") == [EventType.HA_ARMED, EventType.HA_DISARMED]


# -- status


async def test_process_that_does_not_decide_tells_what_it_heard_itself(scene: Scene) -> None:
    names = ("aside", "fenced", "fencing", "heard", "silent")
    aside, fenced, fencing, heard, _ = nodes = [make_node(hostname=name) for name in names]
    nodes[0] = aside = replace(aside, phase=Phase.MAINTENANCE)
    await add(scene.store, *nodes)
    await written(scene.store, proven(await opened(scene.store, fenced.id)))
    await opened(scene.store, fencing.id)
    scene.hear(heard, 1.0)
    scene.controllers.hostname = "heard"
    guard = NodeGuard(heard.id, 1, True, "", "boot", NOW)
    await scene.store.run(lambda tx: tx.note_guards([guard, replace(guard, node_id=aside.id, ha_version=0)]))

    found = await scene.status()
    by_name = {each.hostname: each for each in found.nodes}
    assert list(by_name) == list(names)
    assert {name: NodeHealth(each.health) for name, each in by_name.items()} == {
        "aside": NodeHealth.MAINTENANCE,
        "fenced": NodeHealth.FENCED,
        "fencing": NodeHealth.FENCING,
        "heard": NodeHealth.HEALTHY,
        "silent": NodeHealth.SUSPECT,
    }
    assert by_name["silent"].reason.startswith("silent for 60.0 s, as the process that answers heard")
    assert by_name["fenced"].fence.proof.evidence == "13.6 s passed"
    assert (by_name["heard"].power_agent, by_name["silent"].power_agent) == ("redfish", "")
    assert (by_name["heard"].is_self_fencing, by_name["heard"].self_fencing_obstacle) == (True, "")
    assert by_name["aside"].self_fencing_obstacle == "it knows version 0 of the settings, not yet 1"
    assert by_name["silent"].self_fencing_obstacle == "it has said nothing of its guard yet"
    assert by_name["heard"].HasField("last_heard_at")
    assert not by_name["silent"].HasField("last_heard_at")
    assert (found.obstacle, found.leader_id) == ("nobody was elected yet", "")
    assert (found.times.proof_wait_ms, found.times.clock_drift_ppm) == (13600, 1000)

    scene.now_s = 3.0
    (silent,) = [each for each in (await scene.status()).nodes if each.hostname == "silent"]
    assert silent.health == api.NODE_HEALTH_UNKNOWN
    await scene.ha().disarm("new switch", "eve")
    disarmed = {each.hostname: each for each in (await scene.status()).nodes}["heard"]
    assert (disarmed.is_self_fencing, disarmed.self_fencing_obstacle) == (False, "high availability is disarmed")


async def test_process_that_decides_tells_what_it_thinks_and_what_would_happen(scene: Scene, node: Node) -> None:
    target = make_node(hostname="target")
    spec = VmSpec(ha_policy=HaPolicy(auto_restart=True))
    vm = make_vm(name="db", node_id=node.id, spec=spec, wanted_state=PowerState.RUNNING)
    await add(scene.store, target, vm)
    await scene.store.run(lambda tx: tx.take_leadership("leader", "cp-1", START_OF_TIME))
    scene.view = View(is_leader=True, thought={node.id: NodeView(NodeHealth.SUSPECT, "silent for 8 s")})
    scene.view.waits = [Waiting(vm.id, "no room", 2, NOW), Waiting(make_id(), "gone since")]
    scene.oracle.says = [Forecast(vm.id, target.id), Forecast(make_id(), obstacle="no room")]

    found = await scene.status(include_forecast=True)
    assert (found.leader_hostname, found.epoch, found.obstacle) == ("cp-1", 1, "")
    assert (found.failures_survived, found.admission_policy) == (1, "room for 1 failed node")
    first = found.nodes[0]
    assert (first.hostname, first.health, first.reason) == ("rack3-12", api.NODE_HEALTH_SUSPECT, "silent for 8 s")
    assert first.protected_vm_count == 1
    assert [(each.vm_name, each.target_hostname, each.obstacle) for each in first.forecast] == [
        ("db", "target", ""),
        ("", "", "no room"),
    ]
    waiting = found.waiting_vms[0]
    assert (waiting.vm_name, waiting.node_id, waiting.attempt_count) == ("db", node.id, 2)
    assert waiting.HasField("next_attempt_at")
    assert not found.waiting_vms[1].HasField("next_attempt_at")
    assert not (await scene.status()).nodes[0].forecast

    scene.view.obstacle = "etcd does not answer"
    assert (await scene.status()).obstacle == "etcd does not answer"
