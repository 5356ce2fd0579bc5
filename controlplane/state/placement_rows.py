"""Statements with which placement reads the VMs that there are; each runs in an open transaction and blocks.

Contracts: `interface.Transaction`.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, Select, bindparam, or_, select, union_all

from controlplane.domain.node import Capacity
from controlplane.domain.placement import NodeName, StandingVm, VmClaim, VmVersion
from controlplane.state import queries, records
from controlplane.state.prepared import Prepared
from controlplane.state.schema import node_labels, nodes, placement_turns, vm_labels, vm_migrations, vms
from controlplane.state.schema_base import PLACEMENT_TURN_COUNT
from controlplane.state.seals import Seals, seals_of

_MAX_IDS = 2000
"""Of one statement; databases bound how many values one may have, the lowest bound in use being 32,766."""

_VERSIONS = select(vms.c.id, vms.c.version, vms.c.node_id).where(vms.c.node_id.is_not(None))
_ARRIVING = select(vm_migrations.c.vm_id).where(
    vm_migrations.c.target_node_id == bindparam("wanted_node"), vm_migrations.c.is_settled.is_(False)
)
_ON_NODE = Prepared(_VERSIONS.where(or_(vms.c.node_id == bindparam("wanted_node"), vms.c.id.in_(_ARRIVING))))
"""Those that are on their way to the node too: they have claimed their room there, and may be there at any moment."""
_STANDING = select(
    vms.c.id,
    vms.c.name,
    vms.c.project_id,
    vms.c.node_id,
    vms.c.version,
    vms.c.vcpus,
    vms.c.memory_bytes,
    vms.c.spec,
)
_TURNS = select(placement_turns.c.id).order_by(placement_turns.c.id).with_for_update(key_share=True)
_ALL_TURNS = Prepared(_TURNS)
_ONE_TURN = Prepared(_TURNS.where(placement_turns.c.id == bindparam("wanted_turn")))


def take_turn(connection: Connection) -> None:
    """Hold all rows of the turn, in order. SQLite, whose writers queue anyway, just reads them."""
    _ALL_TURNS.all(connection, {})


def share_turn(connection: Connection, vm_id: str) -> None:
    """Hold one row of the turn, the same one for the same VM.

    Not all rows in a mode that many can share: then whoever waits for the turn alone might wait for ever.
    """
    _ONE_TURN.first(connection, {"wanted_turn": zlib.crc32(vm_id.encode()) % PLACEMENT_TURN_COUNT})


def hold_vms(connection: Connection, vm_ids: Collection[str]) -> None:
    """Keep others from changing the VMs, held in the order of their ids, until the transaction ends."""
    for some in _batches(sorted(set(vm_ids))):
        held = select(vms.c.id).where(vms.c.id.in_(some)).order_by(vms.c.id)
        connection.execute(held.with_for_update(key_share=True)).all()


def versions_reaching_far(connection: Connection, project_id: str = "") -> list[VmVersion]:
    """Placed VMs whose rules keep others out of more than a host; one on its way is also given where it goes."""
    conditions: list[queries.Condition] = [vms.c.reaches_far.is_(True)]
    if project_id:
        conditions.append(vms.c.project_id == project_id)
    target = vm_migrations.c.target_node_id
    going = select(vms.c.id, vms.c.version, target).join(vm_migrations, vm_migrations.c.vm_id == vms.c.id)
    arriving = going.where(*conditions, vm_migrations.c.is_settled.is_(False), target != vms.c.node_id)
    rows = connection.execute(union_all(_VERSIONS.where(*conditions), arriving))
    return [VmVersion._make(row) for row in rows]


def versions(connection: Connection, project_id: str = "", node_id: str = "") -> list[VmVersion]:
    """Placed VMs of a project, on a node or on their way there, or all of them."""
    if node_id:
        rows = _ON_NODE.all(connection, {"wanted_node": node_id})
        return [VmVersion(row.id, row.version, row.node_id) for row in rows]
    query = _VERSIONS.where(vms.c.project_id == project_id) if project_id else _VERSIONS
    return [VmVersion._make(row) for row in connection.execute(query)]


def versions_selected(
    connection: Connection, project_id: str, selectors: Collection[Mapping[str, str]], vm_ids: Collection[str]
) -> list[VmVersion]:
    """Placed VMs of the project that have all labels of one of the selectors, and those with one of the ids."""
    found: dict[str, VmVersion] = {}
    if selectors:
        matching = [vms.c.id.in_(_owners(selector)) for selector in selectors if selector]
        query = _VERSIONS.where(vms.c.project_id == project_id, or_(*matching))
        found.update({row.id: VmVersion._make(row) for row in connection.execute(query)})
    for some in _batches(sorted(set(vm_ids) - found.keys())):
        query = _VERSIONS.where(vms.c.id.in_(some))
        found.update({row.id: VmVersion._make(row) for row in connection.execute(query)})
    return list(found.values())


def claims(connection: Connection) -> list[VmClaim]:
    """What every placed VM claims."""
    query = select(vms.c.id, vms.c.node_id, vms.c.vcpus, vms.c.memory_bytes).where(vms.c.node_id.is_not(None))
    return [VmClaim(row[0], row[1], Capacity(row[2], row[3])) for row in connection.execute(query)]


def standing(connection: Connection, vm_ids: Collection[str]) -> list[StandingVm]:
    """Those of the VMs that exist; one that is on no node has the node id ""."""
    found: list[StandingVm] = []
    for some in _batches(sorted(set(vm_ids))):
        rows = connection.execute(_STANDING.where(vms.c.id.in_(some))).all()
        labels = queries.read_labels(connection, vm_labels, [row.id for row in rows])
        found += [_standing(row, labels.get(row.id, {}), seals_of(connection)) for row in rows]
    return found


def node_names(connection: Connection) -> list[NodeName]:
    """Names and labels of every node."""
    labels: dict[str, dict[str, str]] = {}
    for row in connection.execute(select(node_labels)):
        labels.setdefault(row[0], {})[row.key] = row.value
    rows = connection.execute(select(nodes.c.id, nodes.c.hostname)).all()
    return [NodeName(row.id, row.hostname, labels.get(row.id, {})) for row in rows]


def _standing(row: Any, labels: Mapping[str, str], seals: Seals) -> StandingVm:
    return StandingVm(
        id=row.id,
        name=row.name,
        project_id=row.project_id,
        node_id=row.node_id or "",
        version=row.version,
        vcpus=row.vcpus,
        memory_bytes=row.memory_bytes,
        labels=labels,
        spec=records.spec_from_row(row, seals),
    )


def _owners(selector: Mapping[str, str]) -> Select[Any]:
    """Ids of the VMs with all labels of a selector, found by the index of labels."""
    (key, value), *others = sorted(selector.items())
    owners = select(vm_labels.c.vm_id).where(vm_labels.c.key == key, vm_labels.c.value == value)
    for other_key, other_value in others:
        having = select(vm_labels.c.vm_id).where(vm_labels.c.key == other_key, vm_labels.c.value == other_value)
        owners = owners.where(vm_labels.c.vm_id.in_(having))
    return owners


def _batches(ids: list[str]) -> Iterator[list[str]]:
    return (ids[begin : begin + _MAX_IDS] for begin in range(0, len(ids), _MAX_IDS))
