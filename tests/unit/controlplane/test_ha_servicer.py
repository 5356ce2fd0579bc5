"""HaService over gRPC: requests are checked, decoded, and answered page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from controlplane.api.ha_servicer import HaServicer
from controlplane.domain.ha_times import HaTimes
from controlplane.power.factory import NoControllers
from controlplane.services.ha import HaService
from controlplane.services.ha_status import HaStatusService
from controlplane.services.hearing import Hearing
from controlplane.state.interface import Store
from limiquantix.compute.v1 import ha_service_pb2 as api
from limiquantix.compute.v1.ha_service_pb2_grpc import HaServiceStub, add_HaServiceServicer_to_server
from limiquantix.errors import ApiError, Reason
from limiquantix.rpc.channel import open_channel
from limiquantix.rpc.pipeline import CallPipeline
from limiquantix.rpc.server import RpcServer
from limiquantix.rpc.status import from_rpc_error
from telemetry.metrics import RpcMetrics, build_registry
from tests.support.builders import START_OF_TIME, make_node
from tests.support.databases import fresh_sqlite
from tests.support.fences import ended, opened, written
from tests.support.stores import add, open_store

if TYPE_CHECKING:
    from limiquantix.compute.v1.ha_service_pb2_grpc import HaServiceAsyncStub

NOW = START_OF_TIME + timedelta(days=1)
SERVICE = api.DESCRIPTOR.services_by_name["HaService"].full_name


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(fresh_sqlite(tmp_path)) as opened_store:
        yield opened_store


@pytest.fixture
async def stub(store: Store) -> AsyncIterator[HaServiceAsyncStub]:
    """The service of a process that has listened for a minute."""
    hearing, times = Hearing(began_s=0.0), HaTimes()
    status = HaStatusService(store, hearing, times, NoControllers(), view=None, clock=lambda: 60.0)
    service = HaService(store, hearing, lambda: NOW, times.suspect_after_s, clock=lambda: 60.0)
    server = RpcServer(
        CallPipeline({}, RpcMetrics(build_registry())),
        [SERVICE],
        lambda rpc: add_HaServiceServicer_to_server(HaServicer(service, status), rpc),
    )
    port = await server.start("127.0.0.1:0")
    async with open_channel(f"127.0.0.1:{port}") as channel:
        yield HaServiceStub(channel)
    await server.stop(0)


async def refusal(call: Awaitable[object]) -> ApiError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return from_rpc_error(refused.value, peer="the control plane")


async def test_fences_come_page_by_page_and_a_token_belongs_to_its_filters(
    store: Store, stub: HaServiceAsyncStub
) -> None:
    node = make_node(hostname="rack3-12")
    await add(store, node)
    made = []
    for number in range(3):
        fence = await opened(store, node.id, opened_at=START_OF_TIME + timedelta(seconds=number))
        made.append(await written(store, ended(fence)))

    first = await stub.ListFences(api.ListFencesRequest(page_size=2))
    second = await stub.ListFences(api.ListFencesRequest(page_size=2, page_token=first.next_page_token))
    assert [each.id for each in (*first.fences, *second.fences)] == [fence.id for fence in made[::-1]]
    assert (first.total_count, second.next_page_token) == (3, "")
    assert (await stub.GetFence(api.GetFenceRequest(id=made[0].id))).hostname == "rack3-12"
    other_filter = api.ListFencesRequest(only_current=True, page_token=first.next_page_token)
    assert (await refusal(stub.ListFences(other_filter))).reason == Reason.PAGE_TOKEN_INVALID


async def test_person_is_the_caller(store: Store, stub: HaServiceAsyncStub) -> None:
    node = make_node(hostname="rack3-12")
    await add(store, node)
    fence = await stub.FenceNode(api.FenceNodeRequest(node_id=node.id, reason="its disk clicks"))
    assert fence.reason == "anonymous asked for it: its disk clicks"
    confirmation = api.ConfirmNodeDeadRequest(node_id=node.id, hostname="rack3-12", statement="pulled both cords")
    confirmed = await stub.ConfirmNodeDead(confirmation)
    assert (confirmed.id, confirmed.proof.witness) == (fence.id, "anonymous")
    disarmed = await stub.DisarmHa(api.DisarmHaRequest(reason="new switch"))
    assert (disarmed.is_armed, disarmed.changed_by) == (False, "anonymous")
    assert (await stub.ArmHa(api.ArmHaRequest())).is_armed

    status = await stub.GetHaStatus(api.GetHaStatusRequest())
    assert [each.fence.id for each in status.nodes] == [fence.id]
    assert status.obstacle == "this process takes no part in high availability"


async def test_word_that_says_nothing_is_no_statement(store: Store, stub: HaServiceAsyncStub) -> None:
    node = make_node()
    await add(store, node)
    short = api.ConfirmNodeDeadRequest(node_id=node.id, hostname=node.hostname, statement="dead")
    refused = await refusal(stub.ConfirmNodeDead(short))
    assert [violation.field for violation in refused.violations] == ["statement"]
    no_reason = await refusal(stub.DisarmHa(api.DisarmHaRequest()))
    assert [violation.field for violation in no_reason.violations] == ["reason"]
