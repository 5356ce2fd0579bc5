"""A host that joined and turned hostile, on the port for hosts: what it may say of other hosts and of their VMs."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from controlplane.access.methods import METHODS, Audience
from controlplane.authority.host_calls import OWN_FIELDS
from limiquantix.compute.v1 import node_service_pb2 as api
from limiquantix.errors import ApiError, Code, Reason
from limiquantix.rpc.status import from_rpc_error
from tests.support.closed_cluster import DEADLINE_S, ClosedCluster, JoinedHost, closed_cluster
from tests.support.control_plane_world import register_request
from tests.support.running_control_plane import sound_body

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMING = {method for method, rule in METHODS.items() if rule.audience is Audience.HOSTS and OWN_FIELDS[method]}
"""Methods whose requests say whose word they are; of the others, the certificate alone does."""


@dataclass(frozen=True)
class Scene:
    """Two hosts, and a VM that is on the honest one."""

    cluster: ClosedCluster
    honest: JoinedHost
    hostile: JoinedHost
    vm_id: str

    async def vm(self) -> dict[str, Any]:
        """What is known of the VM, but for when that was touched last, and for what warns of a second one."""
        document = await self.cluster.done("VMService/GetVM", {"id": self.vm_id})
        document["status"].pop("health", None)
        for name in ("updatedAt", "resourceVersion"):
            document.pop(name, None)
        return dict(document)

    async def node(self) -> dict[str, Any]:
        """What is known of the honest host, but for what its own beats change."""
        document = await self.cluster.done("NodeService/GetNode", {"id": self.honest.id})
        document.pop("updatedAt", None)
        document.pop("lastHeartbeat", None)
        document["status"].pop("lastHeartbeat", None)
        return dict(document)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    # Neither host beats of itself, so neither must be missed before the last test has come.
    quiet = {"ha": {"enabled": False}, "nodes": {"heartbeat_interval_s": 3600}}
    async with closed_cluster(tmp_path_factory.mktemp("plane"), **quiet) as cluster:
        honest = await cluster.join("honest")
        await honest.register()
        made = await cluster.done("VMService/CreateVM", sound_body(name="of-honest", nodeId=honest.id))
        hostile = await cluster.join("hostile")
        await hostile.register()
        assert made["status"]["nodeId"] == honest.id
        yield Scene(cluster, honest, hostile, made["id"])


def lie(vm_id: str, **changes: Any) -> api.VMStatusReport:
    """Say of a VM that it is quite another one, and newer than all that is known."""
    report = api.VMStatusReport(
        id=vm_id,
        name="taken",
        state=api.VM_POWER_STATE_RUNNING,
        state_change_count=10**9,
        vcpu_count=64,
        memory_mib=2**20,
        ip_addresses=["192.0.2.66"],
        is_managed=True,
        generation=10**6,
        guest=api.GuestReport(hostname="taken", agent_version="6.6", as_of_unix=2_000_000_000),
    )
    report.MergeFrom(api.VMStatusReport(**changes))
    return report


def words_of(node_id: str, hostname: str, vm_id: str) -> Mapping[str, Callable[[], Message]]:
    """Make a sound request of each method that hosts call, in the name of a host."""
    pool = api.StoragePoolStatusReport(pool_id=str(uuid.uuid4()))
    vm = api.NodeVMInfo(id=vm_id, name="taken", state="RUNNING")
    return {
        "RegisterNode": lambda: register_request(hostname, agent_endpoint="127.0.0.1:1"),
        "UpdateHeartbeat": lambda: api.UpdateHeartbeatRequest(node_id=node_id, cpu_usage_percent=99),
        "AnnounceShutdown": lambda: api.AnnounceShutdownRequest(
            node_id=node_id, kind=api.AnnounceShutdownRequest.POWER_OFF, boot_id="b"
        ),
        "SyncNodeVMs": lambda: api.SyncNodeVMsRequest(node_id=node_id, vms=[vm]),
        "SyncFullState": lambda: api.SyncFullStateRequest(node_id=node_id, vms=[lie(vm_id)]),
        "NotifyVMChange": lambda: api.VMChangeNotification(
            node_id=node_id, vm=lie(vm_id), event_type=api.VM_CHANGE_UPDATED
        ),
        "NotifyStorageChange": lambda: api.StorageChangeNotification(node_id=node_id, pool=pool),
    }


async def answer_of(host: JoinedHost, method: str, request: Message) -> ApiError | Message:
    """Call a method with the certificate of a host."""
    service, _, name = method.strip("/").partition("/")
    output = GetMessageClass(Default().FindServiceByName(service).methods_by_name[name].output_type)
    call = host.channel.unary_unary(method, type(request).SerializeToString, output.FromString)
    try:
        answer: Message = await call(request, timeout=DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error, peer="the control plane")
    return answer


def assert_refused(answer: ApiError | Message) -> None:
    assert isinstance(answer, ApiError), answer
    assert (answer.code, answer.reason) == (Code.PERMISSION_DENIED, Reason.NOT_OF_THIS_NODE)


async def test_every_method_of_hosts_is_tried_here() -> None:
    names = {method.rpartition("/")[2] for method in NAMING}
    assert names == set(words_of("", "", ""))


@pytest.mark.parametrize("method", sorted(NAMING), ids=lambda method: method.rpartition("/")[2])
async def test_words_in_the_name_of_another_host_are_refused_and_change_nothing(scene: Scene, method: str) -> None:
    name = method.rpartition("/")[2]
    before = await scene.vm(), await scene.node()

    foreign = words_of(scene.honest.id, scene.honest.hostname, scene.vm_id)[name]()
    assert_refused(await answer_of(scene.hostile, method, foreign))

    assert (await scene.vm(), await scene.node()) == before
    own = words_of(scene.hostile.id, scene.hostile.hostname, str(uuid.uuid4()))[name]()
    answer = await answer_of(scene.hostile, method, own)
    assert not isinstance(answer, ApiError) or answer.code is Code.UNIMPLEMENTED, answer


async def test_vm_of_another_host_stays_what_it_is_whatever_is_said_of_it(scene: Scene) -> None:
    before, claim = await scene.vm(), scene.hostile.control
    for kind in (api.VM_CHANGE_CREATED, api.VM_CHANGE_UPDATED, api.VM_CHANGE_UNKNOWN):
        change = api.VMChangeNotification(node_id=scene.hostile.id, vm=lie(scene.vm_id), event_type=kind)
        assert_refused(await answer_of(scene.hostile, "/limiquantix.compute.v1.NodeService/NotifyVMChange", change))

    # A whole inventory may name any VM: that it exists twice is worth knowing. From then on changes of it are heard.
    states = (api.VM_POWER_STATE_RUNNING, api.VM_POWER_STATE_STOPPED, api.VM_POWER_STATE_CRASHED)
    for state in states:
        told = lie(scene.vm_id, state=state)
        synced = await claim.sync_full_state(api.SyncFullStateRequest(node_id=scene.hostile.id, vms=[told]))
        assert [each.conflict_type for each in synced.conflicts] == ["MISPLACED"]
        changed = api.VMChangeNotification(node_id=scene.hostile.id, vm=told, event_type=api.VM_CHANGE_UPDATED)
        assert (await claim.notify_vm_change(changed)).action == "MISPLACED"
        assert await scene.vm() == before
    gone = api.VMChangeNotification(node_id=scene.hostile.id, vm=lie(scene.vm_id), event_type=api.VM_CHANGE_DELETED)
    assert (await claim.notify_vm_change(gone)).action == "GONE_ELSEWHERE"
    assert await scene.vm() == before
    assert scene.hostile.daemon.vms == {}, "it was sent nothing of the VM"


async def test_host_that_has_the_vm_is_heard_after_all_those_lies(scene: Scene) -> None:
    report = api.VMStatusReport(
        id=scene.vm_id, name="of-honest", state=api.VM_POWER_STATE_RUNNING, state_change_count=7, is_managed=True
    )
    change = api.VMChangeNotification(node_id=scene.honest.id, vm=report, event_type=api.VM_CHANGE_UPDATED)
    assert (await scene.honest.control.notify_vm_change(change)).action == "UPDATED"
    assert (await scene.vm())["status"]["state"] == "RUNNING"
