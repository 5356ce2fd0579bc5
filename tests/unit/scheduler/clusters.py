"""Random clusters for property tests: small nodes with labels, VMs on them with labels and rules, and requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from hypothesis import strategies as st

from controlplane.domain.node import Phase
from controlplane.scheduler.inventory import NO_NEEDS, UNTOLD, Device, DeviceNeed, Inventory, Needs, NumaNeed
from controlplane.scheduler.neighbours import PlacedVm
from controlplane.scheduler.outcomes import SchedulerConfig
from controlplane.scheduler.scores import Strategy
from controlplane.scheduler.snapshot import Candidate, PlacementRequest
from limiquantix.compute.v1.node_pb2 import HostDevice
from limiquantix.compute.v1.vm_pb2 import NodeLabelRule, PlacementPolicy, SpreadRule, Toleration, VmAffinityRule
from tests.unit.scheduler.placement_builders import MIB, a_candidate, a_taint

T = TypeVar("T")

NODE_IDS = [f"n{number}" for number in range(6)]
VM_IDS = [f"v{number}" for number in range(6)]
APPS = ["db", "web"]
KEYS = ["", "rack", "zone"]

configs = st.builds(SchedulerConfig, st.sampled_from(Strategy), st.integers(1, 8))
app_labels: st.SearchStrategy[dict[str, str]] = st.one_of(
    st.just({}), st.fixed_dictionaries({"app": st.sampled_from(APPS)}, optional={"tier": st.just("1")})
)
inventories = st.one_of(
    st.just(UNTOLD),
    st.just(
        Inventory(
            numa_bytes={0: 3 * MIB, 1: 2 * MIB},
            page_counts={2 * MIB: 2},
            devices=(Device(HostDevice.USB, "1:1", "aaaa", "bbbb"), Device(HostDevice.USB, "1:2", "aaaa", "bbbb")),
        )
    ),
)
needs = st.one_of(
    st.just(NO_NEEDS),
    st.just(NO_NEEDS),
    st.just(NO_NEEDS),
    st.just(Needs(devices=(DeviceNeed(HostDevice.USB, vendor_id="aaaa", product_id="bbbb"),))),
    st.just(Needs(numa=(NumaNeed(MIB, (0,)),))),
    st.just(Needs(page_bytes=2 * MIB, page_count=1)),
)


@st.composite
def nodes(draw: st.DrawFn, node_id: str | None = None) -> Candidate:
    labels = draw(
        st.fixed_dictionaries(
            {}, optional={"zone": st.sampled_from(["a", "b"]), "rack": st.sampled_from(["1", "2", "3"])}
        )
    )
    tainted = draw(st.integers(0, 4)) == 0
    return a_candidate(
        node_id or draw(st.sampled_from(NODE_IDS)),
        vcpus=draw(st.integers(0, 10)),
        memory_mib=draw(st.integers(0, 10)),
        used_vcpus=draw(st.integers(0, 3)),
        used_memory_mib=draw(st.integers(0, 3)),
        phase=draw(st.sampled_from([Phase.READY] * 5 + [Phase.OFFLINE])),
        schedulable=draw(st.integers(0, 5)) > 0,
        taints=[a_taint(draw(st.sampled_from(["gpu=1:NO_SCHEDULE", "old=1:PREFER_NO_SCHEDULE"])))] if tainted else [],
        labels=labels,
        inventory=draw(inventories),
    )


vm_rules = st.builds(
    VmAffinityRule,
    kind=st.sampled_from([VmAffinityRule.TOGETHER, VmAffinityRule.APART, VmAffinityRule.APART]),
    labels=app_labels,
    vm_ids=st.lists(st.sampled_from(VM_IDS), max_size=2),
    topology_key=st.sampled_from(KEYS),
    weight=st.sampled_from([0, 0, 7, 30]),
).filter(lambda rule: bool(rule.labels or rule.vm_ids))
spread_rules = st.builds(
    SpreadRule,
    labels=app_labels,
    topology_key=st.sampled_from(KEYS),
    max_skew=st.integers(0, 2),
    weight=st.sampled_from([0, 0, 9]),
)
node_rules = st.builds(
    NodeLabelRule,
    key=st.just("zone"),
    operator=st.sampled_from([NodeLabelRule.IN, NodeLabelRule.NOT_IN]),
    values=st.just(["a"]),
    weight=st.sampled_from([0, 25]),
)


def seldom(strategy: st.SearchStrategy[T]) -> st.SearchStrategy[list[T]]:
    """Mostly nothing, so that enough requests are placed for the properties to say something."""
    return st.one_of(st.just([]), st.just([]), st.lists(strategy, max_size=2))


@st.composite
def requests(draw: st.DrawFn, vm_id: str = "") -> PlacementRequest:
    policy = PlacementPolicy(
        preferred_nodes=draw(seldom(st.sampled_from(NODE_IDS))),
        excluded_nodes=draw(seldom(st.sampled_from(NODE_IDS))),
        anti_affinity_vms=draw(seldom(st.sampled_from(VM_IDS))),
        affinity_vms=draw(st.one_of(st.just([]), seldom(st.sampled_from(VM_IDS)))),
        vm_rules=draw(seldom(vm_rules)),
        spread_rules=draw(seldom(spread_rules)),
        node_rules=draw(seldom(node_rules)),
        tolerations=draw(seldom(st.just(Toleration(key="gpu")))),
    )
    return PlacementRequest(
        vcpus=draw(st.integers(0, 3)),
        memory_bytes=draw(st.integers(0, 3)) * MIB,
        policy=draw(st.sampled_from([policy, PlacementPolicy()])),
        vm_id=vm_id,
        labels=draw(app_labels),
        project_id=draw(st.sampled_from(["p", "p", "q"])),
        needs=draw(needs),
    )


@dataclass(frozen=True)
class Cluster:
    """Nodes, and the VMs on them; the nodes' allocated sizes are as they are, whatever the VMs claim."""

    nodes: list[Candidate]
    vms: list[PlacedVm]


@st.composite
def clusters(draw: st.DrawFn, min_nodes: int = 0) -> Cluster:
    ids = draw(st.lists(st.sampled_from(NODE_IDS), unique=True, min_size=min_nodes))
    found = [draw(nodes(node_id)) for node_id in ids]
    placed = draw(st.lists(st.sampled_from(VM_IDS), unique=True, max_size=5)) if ids else []
    return Cluster(found, [PlacedVm(draw(st.sampled_from(ids)), draw(requests(vm_id))) for vm_id in placed])


batches = st.lists(requests(), max_size=4).map(
    lambda batch: [
        PlacementRequest(
            each.vcpus,
            each.memory_bytes,
            each.policy,
            vm_id=f"new{number}",
            labels=each.labels,
            project_id=each.project_id,
            needs=each.needs,
        )
        for number, each in enumerate(batch)
    ]
)
