"""Statements about nodes and claims; each function runs in an open transaction and blocks.

Contracts: `interface.Transaction`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from sqlalchemy import (
    BigInteger,
    Connection,
    Double,
    Select,
    Update,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from controlplane.domain import errors
from controlplane.domain.node import Capacity, Heartbeat, Node, NodeClaims, Phase
from controlplane.domain.query import Cursor, NodeFilter, Page
from controlplane.state import queries, records
from controlplane.state.faults import Constraint, broken_constraint
from controlplane.state.prepared import Prepared
from controlplane.state.schema import fences, node_labels, nodes
from controlplane.state.schema_base import UtcMicroseconds

_BY_ID = Prepared(select(nodes).where(nodes.c.id == bindparam("wanted_id")))

_CLAIMS = Prepared(
    # In order, so that what did not change reads the same again: PostgreSQL moves rows that are written.
    select(nodes.c.id, nodes.c.version, nodes.c.allocated_vcpus, nodes.c.allocated_memory_bytes).order_by(nodes.c.id)
)

_VERSIONS = Prepared(select(nodes.c.id, nodes.c.version))

_HOLD = Prepared(update(nodes).where(nodes.c.id == bindparam("wanted_id")).values(version=nodes.c.version))

_HEARTBEAT = update(nodes).where(
    nodes.c.id == bindparam("heard_of"),
    or_(
        nodes.c.last_heartbeat_at.is_(None),
        nodes.c.last_heartbeat_at <= bindparam("heard_at", type_=UtcMicroseconds),
    ),
)


def insert_node(connection: Connection, node: Node) -> None:
    """Add a node, with the newest token there is.

    Its host may know the token of a node that it was before, and refuses commands with a smaller one.
    """
    newest = connection.execute(select(func.coalesce(func.max(fences.c.token), 0))).scalar_one()
    values = {**records.new_node_values(node), "fence_token": max(node.fence_token, int(newest))}
    try:
        connection.execute(insert(nodes), values)
    except IntegrityError as error:
        _refuse(node, error)
    queries.insert_labels(connection, node_labels, node.id, node.labels)


def get_node(connection: Connection, node_id: str) -> Node | None:
    """Read one node."""
    row = _BY_ID.first(connection, {"wanted_id": node_id})
    return None if row is None else records.node_from_row(row, queries.labels_of(connection, node_labels, node_id))


def get_node_by_hostname(connection: Connection, hostname: str) -> Node | None:
    """Read the node of a host."""
    found = _read(connection, select(nodes).where(nodes.c.hostname == hostname))
    return found[0] if found else None


def update_node(connection: Connection, node: Node) -> tuple[Node, Mapping[str, str] | None]:
    """Write what describes the node if the stored version is the record's.

    Returns:
        The node with its new version, and the labels it had before if they changed. It keeps the record's
        `allocated`, `usage` and `last_heartbeat_at`, which may be older than the stored ones.
    """
    changed = dataclasses.replace(node, version=node.version + 1)
    statement = update(nodes).where(nodes.c.id == node.id, nodes.c.version == node.version)
    try:
        row_count = connection.execute(statement.values(records.described_node_values(changed))).rowcount
    except IntegrityError as error:
        _refuse(node, error)
    if row_count == 0:
        raise errors.concurrent_change("node", node.id)
    return changed, queries.replace_labels(connection, node_labels, node.id, node.labels)


def hold(connection: Connection, node_id: str) -> bool:
    """Keep others from changing a node until the transaction ends; False if there is none of that id."""
    return _HOLD.change(connection, {"wanted_id": node_id}) > 0


def delete_node(connection: Connection, node_id: str) -> bool:
    """Remove a node's row; its labels go with it."""
    return connection.execute(delete(nodes).where(nodes.c.id == node_id)).rowcount > 0


def list_nodes(connection: Connection, wanted: NodeFilter, after: Cursor | None, limit: int) -> Page[Node]:
    """Read a page and the true total; ValueError for a limit below 1."""
    conditions: list[queries.Condition] = []
    if wanted.phases:
        conditions.append(nodes.c.phase.in_(sorted(wanted.phases)))
    if wanted.compute_only:
        conditions.append(nodes.c.role_compute.is_(True))
    if wanted.storage_only:
        conditions.append(nodes.c.role_storage.is_(True))
    if wanted.control_plane_only:
        conditions.append(nodes.c.role_control_plane.is_(True))
    of_page = [*conditions, *queries.labelled_in_order(nodes, node_labels, wanted.labels)]
    found = _read(connection, queries.page_query(nodes, of_page, after, limit))
    of_all = [*conditions, *queries.labelled(nodes, node_labels, wanted.labels)]
    return queries.page(found, limit, queries.count(connection, nodes, of_all))


def all_nodes(connection: Connection) -> list[Node]:
    """Every node, oldest first."""
    return _read(connection, queries.in_order(nodes, []))


def some_nodes(connection: Connection, node_ids: Collection[str]) -> list[Node]:
    """Those of the nodes that exist."""
    return _read(connection, select(nodes).where(nodes.c.id.in_(sorted(node_ids)))) if node_ids else []


def node_claims(connection: Connection) -> list[NodeClaims]:
    """What is claimed on every node."""
    return [NodeClaims(*row) for row in _CLAIMS.tuples(connection, {})]


def node_versions(connection: Connection) -> dict[str, int]:
    """The version of every node."""
    return dict(_VERSIONS.tuples(connection, {}))


def loaded_nodes(connection: Connection, cpu_percent: float, memory_percent: float) -> list[Node]:
    """READY nodes that use at least so much of their processors, or of their memory."""
    used = cast(nodes.c.usage_memory_used_bytes, Double)
    total = cast(nodes.c.usage_memory_total_bytes, Double)
    is_loaded = or_(nodes.c.usage_cpu_percent >= cpu_percent, 100.0 * used >= memory_percent * total)
    return _read(connection, queries.in_order(nodes, [nodes.c.phase == Phase.READY, total > 0, is_loaded]))


def record_heartbeats(connection: Connection, heartbeats: Sequence[Heartbeat]) -> None:
    """Store several heartbeats; those of unknown nodes are ignored."""
    if not heartbeats:
        return
    # Always in the same order: two control planes that write the same nodes must not wait for each other.
    ordered = sorted(heartbeats, key=lambda heartbeat: (heartbeat.node_id, heartbeat.at))
    connection.execute(
        _HEARTBEAT,
        [{"heard_of": each.node_id, "heard_at": each.at, **records.heartbeat_values(each)} for each in ordered],
    )


def mark_silent_nodes(connection: Connection, heard_before: datetime, now: datetime) -> list[str]:
    """Turn silent READY nodes into NOT_READY; ids are sorted."""
    heard_at = func.coalesce(nodes.c.last_heartbeat_at, nodes.c.created_at)
    statement = (
        update(nodes)
        .where(nodes.c.phase == Phase.READY, heard_at < literal(heard_before, UtcMicroseconds))
        .values(phase=Phase.NOT_READY, updated_at=now, version=nodes.c.version + 1)
        .returning(nodes.c.id)
    )
    return sorted(row.id for row in connection.execute(statement))


def claim(connection: Connection, node_id: str, size: Capacity) -> bool:
    """Add to what is allocated if it fits, in one statement; False also if there is no such node."""
    return _CLAIM.change(connection, _growth(node_id, size)) > 0


def occupy(connection: Connection, node_id: str, size: Capacity) -> None:
    """Add to what is allocated whether it fits or not: for what is on the host already."""
    _ALLOCATE.change(connection, _growth(node_id, size))


def release(connection: Connection, node_id: str, size: Capacity) -> None:
    """Take a claim back.

    Raises:
        ValueError: a negative part, which would be a claim that nobody checks.
    """
    if size.vcpus < 0 or size.memory_bytes < 0:
        raise ValueError(f"cannot release {size}; use claim for a part that grows")
    _ALLOCATE.change(connection, _growth(node_id, Capacity(-size.vcpus, -size.memory_bytes)))


def _growth(node_id: str, size: Capacity) -> dict[str, Any]:
    return {"wanted_id": node_id, "more_vcpus": size.vcpus, "more_memory_bytes": size.memory_bytes}


def _allocation() -> Update:
    """Change what is allocated; never below 0, so that a claim returned twice cannot block a node for good."""
    vcpus = nodes.c.allocated_vcpus + _MORE_VCPUS
    memory_bytes = nodes.c.allocated_memory_bytes + _MORE_MEMORY_BYTES
    return (
        update(nodes)
        .where(nodes.c.id == bindparam("wanted_id"))
        .values(
            allocated_vcpus=case((vcpus < 0, 0), else_=vcpus),
            allocated_memory_bytes=case((memory_bytes < 0, 0), else_=memory_bytes),
        )
    )


_MORE_VCPUS = bindparam("more_vcpus", type_=BigInteger)
_MORE_MEMORY_BYTES = bindparam("more_memory_bytes", type_=BigInteger)
_ALLOCATE = Prepared(_allocation())
_CLAIM = Prepared(
    _allocation().where(
        # A part that does not grow needs no room, even where others took more than there is.
        or_(_MORE_VCPUS <= 0, nodes.c.allocated_vcpus + _MORE_VCPUS <= nodes.c.capacity_vcpus),
        or_(
            _MORE_MEMORY_BYTES <= 0,
            nodes.c.allocated_memory_bytes + _MORE_MEMORY_BYTES <= nodes.c.capacity_memory_bytes,
        ),
    )
)


def _read(connection: Connection, query: Select[Any]) -> list[Node]:
    rows = connection.execute(query).all()
    labels = queries.read_labels(connection, node_labels, [row.id for row in rows])
    return [records.node_from_row(row, labels.get(row.id, {})) for row in rows]


def _refuse(node: Node, error: IntegrityError) -> NoReturn:
    """Raise the refusal that a broken constraint means."""
    match broken_constraint(error):
        case Constraint.UNIQUE:
            raise errors.concurrent_change("node", node.hostname) from error
        case Constraint.PRIMARY_KEY:
            raise errors.concurrent_change("node", node.id) from error
        case _:
            raise error
