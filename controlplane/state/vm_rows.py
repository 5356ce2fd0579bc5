"""Statements about VMs; each function runs in an open transaction and blocks. Contracts: `interface.Transaction`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, NoReturn

from sqlalchemy import BigInteger, Connection, Select, bindparam, case, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from controlplane.domain import errors
from controlplane.domain.query import Cursor, Page, VmFilter
from controlplane.domain.vm import PowerState, Vm
from controlplane.state import queries, records
from controlplane.state.faults import Constraint, broken_constraint
from controlplane.state.prepared import Prepared
from controlplane.state.schema import vm_labels, vms
from controlplane.state.seals import seals_of
from limiquantix.compute.v1.vm_pb2 import VmStatus

_WITH_ID = select(vms).where(vms.c.id == bindparam("wanted_id"))
_BY_ID = Prepared(_WITH_ID)
_BY_ID_TO_CHANGE = Prepared(_WITH_ID.with_for_update(key_share=True))
"""Keeps others from changing the row until the transaction ends, so that its version still holds when it is written.

On SQLite, whose writers queue anyway, it is the same statement.
"""

_INSERT = Prepared(insert(vms))
_UPDATE = Prepared(update(vms).where(vms.c.id == bindparam("read_id"), vms.c.version == bindparam("read_version")))
_DELETE = Prepared(delete(vms).where(vms.c.id == bindparam("wanted_id")))
_COUNT = Prepared(
    update(vms)
    .where(vms.c.id == bindparam("wanted_id"))
    .values(
        generation=case(
            (vms.c.generation < bindparam("at_least", type_=BigInteger), bindparam("at_least", type_=BigInteger)),
            else_=vms.c.generation,
        )
        + 1
    )
    .returning(vms.c.generation)
)
_STATES_ON_NODE = Prepared(select(vms.c.id, vms.c.power_state).where(vms.c.node_id == bindparam("wanted_id")))
_TOUCH = (
    update(vms)
    .where(
        vms.c.id == bindparam("touched_id"),
        vms.c.node_id == bindparam("reported_by"),
        vms.c.reported_change_count <= bindparam("count"),
    )
    .values(last_seen_at=bindparam("seen"), reported_change_count=bindparam("count"))
)


def insert_vm(connection: Connection, vm: Vm) -> None:
    """Add a VM. An id in use, or a node that is gone, is Aborted."""
    try:
        _INSERT.change(connection, records.new_vm_values(vm, seals_of(connection)))
    except IntegrityError as error:
        _refuse(vm, error)
    queries.insert_labels(connection, vm_labels, vm.id, vm.labels)


def get_vm(connection: Connection, vm_id: str, *, to_change: bool = False) -> Vm | None:
    """Read one VM; `to_change` holds its row until the transaction ends."""
    row = (_BY_ID_TO_CHANGE if to_change else _BY_ID).first(connection, {"wanted_id": vm_id})
    if row is None:
        return None
    return records.vm_from_row(row, queries.labels_of(connection, vm_labels, vm_id), seals_of(connection))


def update_vm(connection: Connection, vm: Vm) -> tuple[Vm, Mapping[str, str] | None]:
    """Write every field but the generation if the stored version is the record's.

    Returns:
        The VM with its new version, and the labels it had before if they changed.
    """
    changed = dataclasses.replace(vm, version=vm.version + 1)
    try:
        read = {"read_id": vm.id, "read_version": vm.version}
        row_count = _UPDATE.change(connection, records.vm_values(changed, seals_of(connection)) | read)
    except IntegrityError as error:
        _refuse(vm, error)
    if row_count == 0:
        raise errors.concurrent_change("vm", vm.id)
    return changed, queries.replace_labels(connection, vm_labels, vm.id, vm.labels)


def delete_vm(connection: Connection, vm_id: str) -> bool:
    """Remove a VM's row with its labels."""
    return _DELETE.change(connection, {"wanted_id": vm_id}) > 0


def next_generation(connection: Connection, vm_id: str, at_least: int = 0) -> int | None:
    """Count the VM's generation up, beyond `at_least`; None if there is no such VM."""
    row = _COUNT.first(connection, {"wanted_id": vm_id, "at_least": at_least})
    return None if row is None else int(row.generation)


def touch_vms(connection: Connection, node_id: str, change_counts: Mapping[str, int], seen_at: datetime) -> None:
    """Note when VMs were last reported, and nothing else but the counts of the reports.

    Smaller ones are ignored, and those of VMs that are another node's by now: each host counts by itself.
    """
    if change_counts:
        said = {"reported_by": node_id, "seen": seen_at}
        counts = sorted(change_counts.items())
        connection.execute(_TOUCH, [{**said, "touched_id": vm_id, "count": count} for vm_id, count in counts])


def vms_seen_by(connection: Connection, node_id: str) -> list[Vm]:
    """VMs that belong elsewhere, but that the node said it has."""
    return [vm for vm in vms_in_conflict(connection) if node_id in vm.sightings]


def vms_in_conflict(connection: Connection) -> list[Vm]:
    """VMs with sightings, of whichever nodes."""
    return _read(connection, queries.in_order(vms, [vms.c.sightings != {}]))


def stopped_against_will(connection: Connection) -> list[Vm]:
    """Managed VMs that shall run and do not."""
    conditions = [
        vms.c.wanted_state == PowerState.RUNNING,
        vms.c.power_state.in_([PowerState.STOPPED, PowerState.CRASHED]),
        vms.c.is_managed.is_(True),
    ]
    return _read(connection, queries.in_order(vms, conditions))


def wanted_running_on(connection: Connection, node_ids: Collection[str]) -> list[Vm]:
    """Managed VMs on these nodes that shall run, oldest first; not those that are saved, or not made yet."""
    if not node_ids:
        return []
    conditions = [
        vms.c.node_id.in_(sorted(node_ids)),
        vms.c.wanted_state == PowerState.RUNNING,
        vms.c.power_state.not_in([PowerState.SUSPENDED, PowerState.PROVISIONING]),
        vms.c.is_managed.is_(True),
    ]
    return _read(connection, queries.in_order(vms, conditions))


def linked_clones(connection: Connection, vm_id: str) -> list[str]:
    """Ids of the VMs whose disks are built upon this one's, oldest first."""
    linked = select(vms.c.id).where(vms.c.linked_to == vm_id).order_by(vms.c.created_at, vms.c.id)
    return [row.id for row in connection.execute(linked)]


def is_name_taken(connection: Connection, project_id: str, name: str) -> bool:
    """Whether the project has a VM of that name."""
    named = select(vms.c.id).where(vms.c.project_id == project_id, vms.c.name == name)
    return connection.execute(named).first() is not None


def power_states_on_node(connection: Connection, node_id: str) -> dict[str, VmStatus.PowerState.ValueType]:
    """Recorded state of each VM placed on the node; reads no documents."""
    return {row.id: row.power_state for row in _STATES_ON_NODE.all(connection, {"wanted_id": node_id})}


def list_vms(connection: Connection, wanted: VmFilter, after: Cursor | None, limit: int) -> Page[Vm]:
    """Read a page and the true total; ValueError for a limit below 1."""
    conditions = queries.in_sight(wanted.visible, vms.c.project_id, vms.c.folder_id)
    if wanted.project_id:
        conditions.append(vms.c.project_id == wanted.project_id)
    if wanted.node_id:
        conditions.append(vms.c.node_id == wanted.node_id)
    if wanted.states:
        conditions.append(vms.c.power_state.in_(sorted(wanted.states)))
    of_page = [*conditions, *queries.labelled_in_order(vms, vm_labels, wanted.labels)]
    found = _read(connection, queries.page_query(vms, of_page, after, limit))
    of_all = [*conditions, *queries.labelled(vms, vm_labels, wanted.labels)]
    return queries.page(found, limit, queries.count(connection, vms, of_all))


def vms_on_node(connection: Connection, node_id: str) -> list[Vm]:
    """Every VM placed on the node, oldest first."""
    return _read(connection, queries.in_order(vms, [vms.c.node_id == node_id]))


def nodes_of_vms(connection: Connection, vm_ids: Collection[str]) -> dict[str, str]:
    """Node ids of those VMs that are placed."""
    if not vm_ids:
        return {}
    placed = select(vms.c.id, vms.c.node_id).where(vms.c.id.in_(sorted(vm_ids)), vms.c.node_id.is_not(None))
    return {row.id: row.node_id for row in connection.execute(placed)}


def vm_ids_by_node(connection: Connection, node_ids: Collection[str]) -> dict[str, list[str]]:
    """Ids of the VMs on each node, oldest first; every given node has an entry."""
    by_node: dict[str, list[str]] = {node_id: [] for node_id in node_ids}
    if by_node:
        placed = select(vms.c.node_id, vms.c.id).where(vms.c.node_id.in_(sorted(by_node)))
        for row in connection.execute(placed.order_by(vms.c.node_id, vms.c.created_at, vms.c.id)):
            by_node[row.node_id].append(row.id)
    return by_node


def _read(connection: Connection, query: Select[Any]) -> list[Vm]:
    rows = connection.execute(query).all()
    labels = queries.read_labels(connection, vm_labels, [row.id for row in rows])
    seals = seals_of(connection)
    return [records.vm_from_row(row, labels.get(row.id, {}), seals) for row in rows]


def _refuse(vm: Vm, error: IntegrityError) -> NoReturn:
    """Raise the refusal that a broken constraint means."""
    match broken_constraint(error):
        case Constraint.UNIQUE:
            raise errors.vm_name_taken(vm.name, vm.project_id) from error
        case Constraint.PRIMARY_KEY:
            raise errors.concurrent_change("vm", vm.id) from error
        case Constraint.FOREIGN_KEY:
            raise errors.concurrent_change("node", vm.node_id) from error
        case _:
            raise error
