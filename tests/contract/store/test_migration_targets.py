"""Where a VM moves to: never where it is, nor where it cannot be carried, and the claim that follows succeeds."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.domain.node import Capacity, Node
from controlplane.domain.vm import Vm
from controlplane.scheduler.plan import Placement, SchedulerConfig
from controlplane.services.placement import NodeMemory
from controlplane.services.targets import choose_target
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1.node_pb2 import StorageDomain
from limiquantix.compute.v1.vm_pb2 import (
    CpuConfig,
    MemoryConfig,
    PlacementPolicy,
    TemplateConfig,
    VmAffinityRule,
    VmSpec,
)
from limiquantix.errors import ApiError, Code
from tests.support.builders import make_id, make_node, make_vm
from tests.support.stores import add

SHARED = make_id()


def host(name: str, *, shared: bool = True, live: bool = True, model: str = "", **fields: Any) -> Node:
    node = make_node(hostname=name, **fields)
    node.spec.supports_live_migration = live
    node.spec.storage_domains.append(StorageDomain(id=SHARED if shared else make_id()))
    if model:
        node.spec.cpu.model = model
    return node


def guest(node: Node, **fields: Any) -> Vm:
    spec = VmSpec(cpu=CpuConfig(cores=2), memory=MemoryConfig(size_mib=256))
    return make_vm(node_id=node.id, **{"spec": spec, **fields})


async def target(store: Store, vm: Vm, **wish: Any) -> Placement:
    async def choose(tx: Transaction) -> Placement:
        placement = await choose_target(tx, vm, SchedulerConfig(), NodeMemory(), **wish)
        assert [ranked.node_id for ranked in placement.ranked] == [placement.node_id]
        assert await tx.claim(placement.node_id, placement.request.size)
        return placement

    return await store.run(choose)


async def refusal(store: Store, vm: Vm, **wish: Any) -> ApiError:
    with pytest.raises(ApiError) as refused:
        await target(store, vm, **wish)
    return refused.value


async def test_target_is_another_node_and_its_room_can_be_claimed(store: Store) -> None:
    source, other = host("a"), host("b")
    vm = guest(source)
    await add(store, source, other, vm)
    placement = await target(store, vm)
    assert placement.node_id == other.id
    assert placement.request.size == Capacity(2, 256 * 2**20)
    assert (await target(store, vm, target_node_id=other.id)).node_id == other.id


async def test_every_node_that_cannot_take_it_is_named_with_its_reason(store: Store) -> None:
    source = host("a")
    full = host("full", vcpus=1)
    apart = host("apart")
    vm = guest(source, labels={"app": "db"})
    policy = PlacementPolicy(vm_rules=[VmAffinityRule(kind=VmAffinityRule.APART, labels={"app": "db"})])
    await add(store, source, full, apart, host("old", live=False), host("amd", model="AMD"), vm)
    await add(store, make_vm(node_id=apart.id, spec=VmSpec(placement=policy)))
    excluded = host("z")
    await add(store, excluded)
    error = await refusal(store, vm, excluded_node_ids=[excluded.id])
    assert error.code is Code.RESOURCE_EXHAUSTED
    facts = dict(error.metadata)
    assert facts["node.a"] == "is the node that the VM is on"
    assert facts["node.old"] == "does not support migration"
    assert facts["node.amd"] == "has another processor (AMD), and the VM uses that of its node (Test CPU)"
    assert facts["node.z"] == "is not to be used this time"
    assert "needs 2 vCPUs" in facts["node.full"]
    assert "must not run beside" in facts["node.apart"]


async def test_named_cpu_model_moves_between_processors_and_missing_features_are_named(store: Store) -> None:
    source, other = host("a"), host("b", model="AMD")
    source.spec.cpu.features.extend(["aes", "avx", "sse"])
    less = host("c")
    less.spec.cpu.features.extend(["sse"])
    vm, named = guest(source), guest(source, spec=VmSpec(cpu=CpuConfig(cores=1, model="Nehalem")))
    await add(store, source, other, less, vm, named)
    error = await refusal(store, vm)
    assert "lacks processor features that the VM's node has (aes, avx)" in error.metadata["node.c"]
    assert (await target(store, named)).node_id in (other.id, less.id)


@pytest.mark.parametrize(
    ("wish", "spec", "words"),
    [
        ({"same_storage_only": True}, VmSpec(), "disks are not to be copied"),
        (
            {},
            VmSpec(template=TemplateConfig(clone_type=TemplateConfig.LINKED, source_template_id=make_id())),
            "where the VM's template is",
        ),
    ],
)
async def test_vm_whose_disks_stay_moves_only_over_shared_storage(
    store: Store, wish: dict[str, Any], spec: VmSpec, words: str
) -> None:
    source, near, far = host("a"), host("near"), host("far", shared=False)
    vm = guest(source, spec=spec)
    await add(store, source, far, vm)
    assert words in (await refusal(store, vm, **wish)).metadata["node.far"]
    await add(store, near)
    assert (await target(store, vm, **wish)).node_id == near.id


async def test_node_it_is_on_unknown_nodes_and_no_node_are_refused(store: Store) -> None:
    source = host("a")
    vm = guest(source)
    await add(store, source, vm)
    assert "is on node" in (await refusal(store, vm, target_node_id=source.id)).message
    assert (await refusal(store, vm, target_node_id=make_id())).code is Code.NOT_FOUND
    assert (await refusal(store, make_vm())).code is Code.FAILED_PRECONDITION
    only = await refusal(store, vm)
    assert only.message == "no node fits: 1 is the node that the VM is on"
