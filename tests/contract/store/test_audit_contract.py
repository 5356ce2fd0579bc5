"""The audit trail on every kind of database: before, after, refused, unknown, filtered, whole, forgotten."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

import pytest
from sqlalchemy import text

from controlplane.access.interface import AuditTrail
from controlplane.api.audit_servicer import AuditServicer
from controlplane.audit.chain import ChainKey
from controlplane.audit.trail import Trail
from controlplane.domain import errors
from controlplane.domain.audit import AuditFilter, AuditOutcome
from controlplane.domain.operation import Operation
from controlplane.domain.principal import Principal, PrincipalKind
from controlplane.services.audit_records import AuditReader, AuditVerdict
from controlplane.state.factory import migration_engine
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1 import audit_service_pb2 as api
from limiquantix.compute.v1 import vm_service_pb2
from limiquantix.errors import Code, Unavailable
from tests.support.builders import make_id
from tests.support.call_origins import FakeOrigin
from tests.support.control_plane_world import FakeClock

ResultT = TypeVar("ResultT")

ANN = Principal(PrincipalKind.USER, "u1", "ann")
BOB = Principal(PrincipalKind.API_KEY, "k1", "ci")
KEY = ChainKey(bytes(range(32)))
FROM = FakeOrigin(address="ipv4:192.0.2.7:51234")
DELETE = "/limiquantix.compute.v1.VMService/DeleteVM"


class AwayStore:
    """A store that can be away."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.is_away = False

    async def run(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        if self.is_away:
            raise errors.state_unavailable("it is away")
        return await self.store.run(work)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


class Scene:
    """The trail of one process, and who reads it."""

    def __init__(self, store: Store, clock: FakeClock | None = None) -> None:
        self.store = store
        self.clock = clock or FakeClock()
        self.trail = Trail(store, lambda: KEY, self.clock, timedelta(days=400))
        self.as_the_guard_sees_it: AuditTrail = self.trail
        self.reader = AuditReader(store, self.trail, lambda: KEY)
        self.servicer = AuditServicer(self.reader)

    async def begin(self, who: Principal | None = ANN, on: str = "vm/v1") -> str:
        self.clock.advance(1)
        return await self.trail.begin(who, DELETE, vm_service_pb2.DeleteVMRequest(id=make_id()), on, FROM)

    async def refuse(self, who: Principal | None, code: int) -> None:
        self.clock.advance(1)
        await self.trail.refused(who, DELETE, None, "", FROM, code, "no")

    async def outcomes(self, **wanted: object) -> list[str]:
        page = await self.reader.list(AuditFilter(**wanted), None, 100)  # type: ignore[arg-type]
        return [each.record.outcome.name for each in page.items]

    async def verify(self) -> AuditVerdict:
        return await self.reader.verify()


@pytest.fixture
def scene(store: Store) -> Scene:
    return Scene(store)


def alter(url: str, statement: str) -> None:
    """Change rows behind everybody's back."""
    engine = migration_engine(url)
    with engine.begin() as connection:
        assert connection.execute(text(statement)).rowcount > 0
    engine.dispose()


async def test_record_is_there_before_the_change_and_completed_once(scene: Scene, other: Store) -> None:
    record_id = await scene.begin()
    (seen,) = (await other.read(lambda tx: tx.list_audit(AuditFilter(), None, 10))).items
    assert (seen.entry.id, seen.outcome) == (record_id, AuditOutcome.UNKNOWN)
    await scene.trail.end(record_id, 0, "")
    await scene.trail.end(record_id, Code.INTERNAL, "again")
    await scene.trail.settle()
    await scene.trail.end(record_id, Code.INTERNAL, "later")
    assert await scene.outcomes() == ["DONE"]
    assert (await scene.verify()).faults == []


async def test_many_at_once_share_transactions_and_keep_their_order(scene: Scene) -> None:
    ids = await asyncio.gather(*(scene.begin() for _ in range(200)))
    await asyncio.gather(*(scene.trail.end(each, index % 2, "x") for index, each in enumerate(ids)))
    verdict = await scene.verify()
    assert (verdict.record_count, verdict.writer_count, verdict.faults) == (200, 1, [])
    assert await scene.outcomes(outcomes=frozenset({AuditOutcome.FAILED})) == ["FAILED"] * 100


async def test_several_processes_write_chains_of_their_own(scene: Scene, other: Store) -> None:
    second = Scene(other, scene.clock)
    await asyncio.gather(*(each.begin() for each in (scene, second) for _ in range(20)))
    verdict = await scene.verify()
    assert (verdict.record_count, verdict.writer_count, verdict.faults) == (40, 2, [])


async def test_refusals_are_written_and_floods_counted(scene: Scene) -> None:
    await scene.refuse(ANN, Code.PERMISSION_DENIED)
    for _ in range(1000):
        await scene.refuse(None, Code.UNAUTHENTICATED)
    page = await scene.reader.list(AuditFilter(outcomes=frozenset({AuditOutcome.REFUSED})), None, 100)
    counts = sorted((each.record.entry.code, each.record.entry.call_count) for each in page.items)
    assert counts == [(Code.PERMISSION_DENIED, 1), (Code.UNAUTHENTICATED, 1), (Code.UNAUTHENTICATED, 999)]
    assert (await scene.verify()).faults == []


async def test_filters_and_pages(scene: Scene) -> None:
    for index in range(5):
        record_id = await scene.begin(ANN if index % 2 else BOB, f"vm/v{index},node/n1")
        await scene.trail.end(record_id, 0, "")
    assert len(await scene.outcomes(principal="ann")) == 2
    assert len(await scene.outcomes(principal="k1")) == 3
    assert len(await scene.outcomes(resource="v3")) == 1
    assert len(await scene.outcomes(resource="node/n1")) == 5
    assert await scene.outcomes(resource="v") == []
    assert await scene.outcomes(resource="node/v3") == []
    assert len(await scene.outcomes(method="DeleteVM")) == 5
    assert await scene.outcomes(method="VM") == []
    assert len(await scene.outcomes(since=scene.clock() - timedelta(seconds=1))) == 2
    assert len(await scene.outcomes(until=scene.clock() - timedelta(seconds=1))) == 3
    first = await scene.reader.list(AuditFilter(), None, 3)
    rest = await scene.reader.list(AuditFilter(), first.next_cursor, 3)
    names = [each.record.entry.resources[0] for each in (*first.items, *rest.items)]
    assert names == ["vm/v4", "vm/v3", "vm/v2", "vm/v1", "vm/v0"]
    assert (first.total_count, rest.next_cursor) == (5, None)


async def test_export_has_a_json_object_a_line_oldest_first(scene: Scene) -> None:
    for index in range(3):
        await scene.begin(on=f"vm/v{index}")
    sent = [each.lines async for each in scene.servicer.ExportAuditRecords(api.ExportAuditRecordsRequest(), None)]  # type: ignore[arg-type]
    records = [json.loads(line) for line in b"".join(sent).splitlines()]
    assert [each["resources"] for each in records] == [["vm/v0"], ["vm/v1"], ["vm/v2"]]
    assert {each["outcome"] for each in records} == {"AUDIT_OUTCOME_UNKNOWN"}


@pytest.mark.parametrize(
    ("statement", "description"),
    [
        ("UPDATE audit_records SET principal_name = 'eve' WHERE number = 2", "the record was altered"),
        ("UPDATE audit_records SET end_code = 0 WHERE number = 2", "what is said of its end was altered"),
        ("DELETE FROM audit_records WHERE number = 2", "a record is missing"),
        ("DELETE FROM audit_records WHERE number = 3", "a record is missing"),
        ("DELETE FROM audit_chains", "the chain of these records is missing"),
        ("UPDATE audit_chains SET forgotten_number = 1", "what is said of the chain's ends was altered"),
    ],
)
async def test_what_somebody_changes_in_the_database_is_found(
    scene: Scene, url: str, statement: str, description: str
) -> None:
    for _ in range(3):
        await scene.trail.end(await scene.begin(), Code.NOT_FOUND, "")
    await scene.trail.settle()
    alter(url, statement)
    assert description in {each.description for each in (await scene.verify()).faults}


async def test_old_records_are_forgotten_and_the_rest_is_whole(scene: Scene) -> None:
    for _ in range(4):
        await scene.begin()
    scene.clock.advance(timedelta(days=399).total_seconds())
    for _ in range(3):
        await scene.begin()
    assert await scene.trail.forget() == 0
    scene.clock.advance(timedelta(days=2).total_seconds())
    assert await scene.trail.forget() == 4
    verdict = await scene.verify()
    assert (verdict.record_count, verdict.faults) == (3, [])
    await scene.begin()
    assert (await scene.verify()).record_count == 4


async def test_change_is_refused_while_the_trail_cannot_be_written_and_ends_wait(store: Store) -> None:
    dying = AwayStore(store)
    scene = Scene(cast(Store, dying))
    begun = await scene.begin()
    dying.is_away = True
    await scene.trail.end(begun, 0, "")
    with pytest.raises(Unavailable):
        await scene.begin()
    with pytest.raises(Unavailable):
        await scene.trail.settle()
    dying.is_away = False
    assert await scene.outcomes() == ["DONE"]


async def test_record_without_an_end_names_the_operation_that_it_began(scene: Scene) -> None:
    """The process that wrote it ended before it could write the outcome."""
    by_request, by_thing, vm_id = make_id(), make_id(), make_id()
    origin = FakeOrigin((("limiquantix-request-id", "r1"),))
    request = vm_service_pb2.DeleteVMRequest(id=make_id())
    await scene.trail.begin(ANN, DELETE, request, "", origin)
    await scene.store.run(lambda tx: tx.insert_operation(operation_at(scene, by_request, make_id(), request_id="r1")))
    await scene.begin(on=f"vm/{vm_id}")
    await scene.store.run(lambda tx: tx.insert_operation(operation_at(scene, by_thing, vm_id)))
    scene.clock.advance(1)
    await scene.store.run(lambda tx: tx.insert_operation(operation_at(scene, make_id(), vm_id)))
    await scene.begin(on=f"vm/{make_id()}")
    after_crash = Scene(scene.store, scene.clock)
    page = await after_crash.reader.list(AuditFilter(), None, 10)
    assert [each.operation_id for each in page.items] == ["", by_thing, by_request]
    assert {each.record.outcome for each in page.items} == {AuditOutcome.UNKNOWN}


def operation_at(scene: Scene, operation_id: str, vm_id: str, *, request_id: str = "") -> Operation:
    """Make an operation of Ann's that begins now."""
    return Operation(
        id=operation_id,
        kind="vm.delete",
        resource_type="vm",
        resource_id=vm_id,
        project_id="p",
        principal="user:ann",
        created_at=scene.clock(),
        steps=(),
        request_id=request_id,
    )
