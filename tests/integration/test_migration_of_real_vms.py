"""The whole stack, every part a process of its own: guests that count on their console move between libvirt hosts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from limiquantix.compute.v1 import node_service_pb2 as node_api
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.operation_pb2 import Operation
from limiquantix.compute.v1.vm_pb2 import VirtualMachine, VmStatus
from tests.support.libvirt_cluster import DEADLINE_S, MEMORY_MIB, LibvirtCluster, Witness, libvirt_cluster
from tests.support.libvirt_hosts import migration_hosts
from tests.support.private_libvirt_host import eventually, virsh

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

SLOW_MBPS = 8
"""A heavy guest's migration never ends at that speed."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real_cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LibvirtCluster]:
    """Hosts "a" and "b" share their storage, "c" has its own."""
    directory = tmp_path_factory.mktemp("cluster")
    images = {"a": directory / "shared", "b": directory / "shared", "c": directory / "own"}
    async with (
        migration_hosts(directory / "hosts", 3) as hosts,
        libvirt_cluster(dict(zip("abc", hosts, strict=True)), images, directory) as running,
    ):
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def cluster(real_cluster: LibvirtCluster) -> AsyncIterator[LibvirtCluster]:
    """VMs that a test leaves are removed."""
    yield real_cluster
    await real_cluster.clear()


async def began(cluster: LibvirtCluster, vm: VirtualMachine, witness: Witness) -> None:
    """Wait until a guest counts."""
    await cluster.until(vm, VmStatus.RUNNING)
    await witness.counts_on(vm.id)


def witness_of(cluster: LibvirtCluster, *vms: VirtualMachine) -> Witness:
    return Witness(list(cluster.nodes.values()), [vm.id for vm in vms])


async def domains(cluster: LibvirtCluster, name: str) -> set[str]:
    """Ask a host's libvirt itself."""
    return set((await virsh(cluster.nodes[name].host.uri, "list", "--all", "--uuid")).split())


async def check_left(cluster: LibvirtCluster, vm: VirtualMachine, name: str) -> None:
    """Check that a host has nothing of a VM but the note of how its departure ended, for commands that come late."""
    assert vm.id not in await domains(cluster, name)
    found = [path.name for path in (cluster.nodes[name].directory / "data").rglob(f"*{vm.id}*")]
    assert [file for file in found if not file.endswith(".source.json")] == []


async def check_disk(image: Path, numbers: int) -> None:
    """Check that every number that a guest wrote is in its sector."""
    raw = image.with_suffix(".check")
    command = ("qemu-img", "convert", "-U", "-O", "raw", str(image), str(raw))
    converting = await asyncio.create_subprocess_exec(*command)
    assert await converting.wait() == 0
    data = await asyncio.to_thread(raw.read_bytes)
    raw.unlink()
    written = [int.from_bytes(data[512 * sector : 512 * sector + 2], "little") for sector in range(1, numbers + 1)]
    assert written == list(range(numbers))


def image_of(cluster: LibvirtCluster, vm: VirtualMachine, name: str) -> Path:
    (image,) = (cluster.nodes[name].storage / vm.id).glob("*.qcow2")
    return image


async def stop(cluster: LibvirtCluster, vm: VirtualMachine) -> None:
    await cluster.plane.vms.StopVM(api.StopVMRequest(id=vm.id, force=True), timeout=DEADLINE_S)


async def test_guest_goes_to_a_host_that_shares_its_storage_and_back(cluster: LibvirtCluster) -> None:
    vm = await cluster.create("shared", "a")
    witness = witness_of(cluster, vm)
    with witness.watching():
        await began(cluster, vm, witness)
        moved = await cluster.migrate(vm, "b")

        assert (moved.vm.status.node_id, moved.vm.status.state) == (cluster.node_ids["b"], VmStatus.RUNNING)
        assert 0 < moved.stats.downtime_ms < 5000
        assert moved.stats.bytes_transferred > 0
        assert await cluster.claimed_mib() == {"a": 0, "b": MEMORY_MIB, "c": 0}
        assert vm.id in await domains(cluster, "b")
        await check_left(cluster, vm, "a")
        request = api.ListVMEventsRequest(vm_id=vm.id)
        events = (await cluster.plane.vms.ListVMEvents(request, timeout=DEADLINE_S)).events
        told = next(event.metadata for event in events if event.type == "vm.migrated")
        assert (told["source_node_id"], told["target_node_id"]) == (cluster.node_ids["a"], cluster.node_ids["b"])
        assert int(told["downtime_ms"]) == moved.stats.downtime_ms

        await witness.counts_on(vm.id)
        await cluster.migrate(vm, "a")
        await witness.counts_on(vm.id)
        assert await cluster.claimed_mib() == {"a": MEMORY_MIB, "b": 0, "c": 0}
        await check_left(cluster, vm, "b")
        await stop(cluster, vm)
    assert witness.most_running == 1
    await check_disk(image_of(cluster, vm, "a"), witness.check_count(vm.id) - 1)


async def test_disks_go_along_where_storage_is_not_shared(cluster: LibvirtCluster) -> None:
    vm = await cluster.create("copied", "a")
    witness = witness_of(cluster, vm)
    with witness.watching():
        await began(cluster, vm, witness)
        moved = await cluster.migrate(vm, "c")

        assert moved.stats.disk_bytes > 0
        assert not (cluster.nodes["a"].storage / vm.id).exists()
        await check_left(cluster, vm, "a")
        await witness.counts_on(vm.id)
        await stop(cluster, vm)
    assert witness.most_running == 1
    await check_disk(image_of(cluster, vm, "c"), witness.check_count(vm.id) - 1)


async def test_vm_that_is_off_moves_with_its_disk_as_it_was_and_starts(cluster: LibvirtCluster) -> None:
    vm = await cluster.create("off", "a", start=False)
    before = image_of(cluster, vm, "a")
    kept = before.parents[1] / "kept.qcow2"
    os.link(before, kept)
    moved = await cluster.migrate(vm, "c")

    assert moved.vm.status.node_id == cluster.node_ids["c"]
    await cluster.until(vm, VmStatus.STOPPED)  # the answer may still tell of the machine that took the disk in
    assert cluster.nodes["c"].console_bytes(vm.id) == b""  # and that never ran
    assert not before.exists()
    await check_left(cluster, vm, "a")
    comparing = await asyncio.create_subprocess_exec(
        "qemu-img", "compare", "-q", str(kept), str(image_of(cluster, vm, "c"))
    )
    assert await comparing.wait() == 0
    kept.unlink()
    witness = witness_of(cluster, vm)
    with witness.watching():
        await cluster.plane.vms.StartVM(api.StartVMRequest(id=vm.id), timeout=DEADLINE_S)
        await witness.counts_on(vm.id)


async def test_next_control_plane_ends_what_the_one_that_was_killed_began(cluster: LibvirtCluster) -> None:
    vm = await cluster.create("orphan", "a", "heavy")
    witness = witness_of(cluster, vm)
    with witness.watching():
        await began(cluster, vm, witness)
        operation = await cluster.begin(vm, "b", SLOW_MBPS)

        await cluster.plane.kill()
        await cluster.plane.start()

        await cluster.nodes["a"].host.hurry_migration(vm.id)
        ended = await cluster.ended(operation)
        assert ended.state == Operation.SUCCEEDED, ended.error
        found = await cluster.until(vm, VmStatus.RUNNING)
        assert found.status.node_id == cluster.node_ids["b"]
        assert await cluster.claimed_mib() == {"a": 0, "b": MEMORY_MIB, "c": 0}
        await check_left(cluster, vm, "a")
        await witness.counts_on(vm.id)
    assert witness.most_running == 1
    witness.check_count(vm.id)


async def test_target_libvirt_killed_meanwhile_leaves_the_vm_where_it_is(cluster: LibvirtCluster) -> None:
    vm = await cluster.create("kept", "a", "heavy")
    witness = witness_of(cluster, vm)
    with witness.watching():
        await began(cluster, vm, witness)
        operation = await cluster.begin(vm, "c", SLOW_MBPS)

        cluster.nodes["c"].host.kill_libvirtd()

        ended = await cluster.ended(operation)
        assert ended.state == Operation.FAILED
        found = await cluster.until(vm, VmStatus.RUNNING)
        assert found.status.node_id == cluster.node_ids["a"]
        assert await cluster.claimed_mib() == {"a": MEMORY_MIB, "b": 0, "c": 0}

        async def look() -> bool | None:
            try:
                is_there = vm.id in await domains(cluster, "c") or (cluster.nodes["c"].storage / vm.id).exists()
            except RuntimeError:  # it is not up again
                return None
            return None if is_there else True

        await eventually(look, "the removal of what came to the target", DEADLINE_S)
        await check_left(cluster, vm, "c")
        await witness.counts_on(vm.id)
    assert witness.most_running == 1
    witness.check_count(vm.id)


async def test_drained_node_has_no_vm_left_and_all_count_elsewhere(cluster: LibvirtCluster) -> None:
    vms = [await cluster.create(f"drained-{number}", "a") for number in range(3)]
    witness = witness_of(cluster, *vms)
    with witness.watching():
        for vm in vms:
            await began(cluster, vm, witness)

        request = node_api.DrainNodeRequest(id=cluster.node_ids["a"])
        told = await cluster.plane.nodes.DrainNode(request, timeout=DEADLINE_S)

        assert sorted(told.migrated_vm_ids) == sorted(vm.id for vm in vms)
        assert list(told.failures) == []
        assert await domains(cluster, "a") == set()
        places = {(await cluster.until(vm, VmStatus.RUNNING)).status.node_id for vm in vms}
        assert places <= {cluster.node_ids["b"], cluster.node_ids["c"]}
        claimed = await cluster.claimed_mib()
        assert (claimed["a"], claimed["b"] + claimed["c"]) == (0, 3 * MEMORY_MIB)
        await witness.counts_on(*(vm.id for vm in vms))
    assert witness.most_running == 1
    for vm in vms:
        witness.check_count(vm.id)
    await cluster.plane.nodes.EnableNode(node_api.EnableNodeRequest(id=cluster.node_ids["a"]), timeout=DEADLINE_S)
