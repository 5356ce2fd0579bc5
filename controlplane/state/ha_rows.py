"""Statements about leadership, fences, guards and settings; each runs in an open transaction and blocks.

Contracts: `ha_interface.HaTransaction`. That a node has one current fence at most is kept by the unique
`current_node_id`, which one that ended or was withdrawn has no longer. Everything that safety rests on is a condition
of the statement that writes: a read before it proves nothing once the transaction waited for another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, case, delete, func, insert, literal, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from controlplane.domain import errors, ha_errors
from controlplane.domain.fencing import (
    PROTECTED_ONLY,
    Counters,
    Fence,
    FenceFilter,
    FenceProof,
    FenceState,
    HaSettings,
    Leadership,
    Marks,
    NodeGuard,
)
from controlplane.domain.query import Cursor, Page
from controlplane.state import node_rows
from controlplane.state.faults import Constraint, broken_constraint
from controlplane.state.prepared import Prepared, StoredRow
from controlplane.state.queries import Condition
from controlplane.state.schema import fences, ha_settings, leadership, node_guards, nodes
from controlplane.state.schema_base import UtcMicroseconds
from limiquantix.compute.v1.ha_service_pb2 import FENCE_METHOD_OPERATOR

_ONLY = 1
"""Id of the single row of `leadership` and of `ha_settings`."""

_LEADERSHIP = Prepared(select(leadership).where(leadership.c.id == _ONLY))
_SETTINGS = Prepared(select(ha_settings).where(ha_settings.c.id == _ONLY))
_CURRENT = Prepared(
    select(fences.c.node_id, fences.c.token).where(fences.c.current_node_id.is_not(None)).order_by(fences.c.token)
)
_TOKENS = Prepared(select(nodes.c.id, nodes.c.fence_token).where(nodes.c.fence_token > 0))


# -- leadership and settings


def get_leadership(connection: Connection) -> Leadership:
    """Read who decides."""
    row = _LEADERSHIP.all(connection, {})[0]
    return Leadership(row.epoch, row.leader_id, row.hostname, row.taken_at)


def take_leadership(connection: Connection, leader_id: str, hostname: str, at: datetime) -> Leadership:
    """Count the epoch up in one statement, which waits for whoever holds it."""
    taken = (
        update(leadership)
        .where(leadership.c.id == _ONLY)
        .values(epoch=leadership.c.epoch + 1, leader_id=leader_id, hostname=hostname, taken_at=at)
        .returning(leadership.c.epoch)
    )
    return Leadership(int(connection.execute(taken).scalar_one()), leader_id, hostname, at)


def require_epoch(connection: Connection, epoch: int) -> None:
    """Lock the row if it has the epoch."""
    held = update(leadership).where(leadership.c.id == _ONLY, leadership.c.epoch == epoch).values(epoch=epoch)
    if connection.execute(held).rowcount == 0:
        newest = get_leadership(connection)
        raise ha_errors.stale_epoch(epoch, newest.epoch, newest.leader_id)


def get_settings(connection: Connection) -> HaSettings:
    """Read the settings."""
    return _settings_from_row(_SETTINGS.all(connection, {})[0])


def update_settings(connection: Connection, settings: HaSettings) -> HaSettings:
    """Write settings if the stored version is theirs."""
    changed = dataclasses.replace(settings, version=settings.version + 1)
    unchanged = update(ha_settings).where(ha_settings.c.id == _ONLY, ha_settings.c.version == settings.version)
    values = dataclasses.asdict(changed)
    del values["longest_wait_ms"]  # it grows without a new version, so what was read before may be too small
    if connection.execute(unchanged.values(values)).rowcount == 0:
        raise errors.concurrent_change("settings of high availability", "")
    return changed


def declare_wait(connection: Connection, wait_ms: int, *, may_shorten: bool) -> int:
    """Raise the longest wait to this, or set it; returns what it is then."""
    declared = update(ha_settings).where(ha_settings.c.id == _ONLY).values(longest_wait_ms=wait_ms)
    connection.execute(declared if may_shorten else declared.where(ha_settings.c.longest_wait_ms < wait_ms))
    return int(connection.execute(select(ha_settings.c.longest_wait_ms)).scalar_one())


def raise_counters(connection: Connection, known: Counters) -> Counters:
    """Raise what is smaller, each by one statement that has that as its condition; returns what was raised.

    A fence that is current has a token that its node has not yet.
    """
    epoch = update(leadership).where(leadership.c.id == _ONLY, leadership.c.epoch < known.epoch)
    has_epoch = known.epoch and connection.execute(epoch.values(epoch=known.epoch)).rowcount
    settings = update(ha_settings).where(ha_settings.c.id == _ONLY, ha_settings.c.version < known.ha_version)
    has_version = known.ha_version and connection.execute(settings.values(version=known.ha_version + 1)).rowcount
    tokens = {}
    for node_id, token in sorted(known.tokens.items()):
        newer = select(fences.c.id).where(fences.c.node_id == node_id, fences.c.token >= token)
        node = update(nodes).where(nodes.c.id == node_id, nodes.c.fence_token < token, ~newer.exists())
        if connection.execute(node.values(fence_token=token, version=nodes.c.version + 1)).rowcount:
            tokens[node_id] = token
    return Counters(known.epoch if has_epoch else 0, known.ha_version + 1 if has_version else 0, tokens)


# -- fences


def open_fence(connection: Connection, fence: Fence) -> Fence:
    """Insert an open fence with the next token; the leadership row orders all of them.

    The node's own token, which its commands carry, becomes that only with the end of the fence: so what is decided
    meanwhile does nothing on a host that knows of the fence, however late it arrives.
    """
    connection.execute(update(leadership).where(leadership.c.id == _ONLY).values(epoch=leadership.c.epoch))
    # Of nodes too: after an older backup was restored, hosts may know of fences that are not there any more.
    newest = max(
        connection.execute(select(func.coalesce(func.max(column), 0))).scalar_one()
        for column in (fences.c.token, nodes.c.fence_token)
    )
    boot = select(node_guards.c.boot_id).where(node_guards.c.node_id == fence.node_id)
    boot_id = connection.execute(boot).scalar_one_or_none() or ""
    opened = dataclasses.replace(fence, token=newest + 1, version=1, boot_id=boot_id)
    marked = update(nodes).where(nodes.c.id == fence.node_id)
    if connection.execute(marked.values(version=nodes.c.version + 1)).rowcount == 0:
        raise errors.node_not_found(fence.node_id)
    try:
        connection.execute(insert(fences), [_values(opened)])
    except IntegrityError as error:
        match broken_constraint(error):
            case Constraint.UNIQUE:
                raise ha_errors.fence_exists(fence.node_id) from error
            case Constraint.PRIMARY_KEY:
                raise errors.concurrent_change("fence", fence.id) from error
            case _:
                raise
    return opened


def get_fence(connection: Connection, fence_id: str, *, to_change: bool = False) -> Fence | None:
    """Read one; `to_change` holds its row until the transaction ends."""
    query = select(fences).where(fences.c.id == fence_id)
    row = connection.execute(query.with_for_update() if to_change else query).first()
    return None if row is None else _fence_from_row(row)


def update_fence(connection: Connection, fence: Fence) -> Fence:
    """Write one if the stored version is its own, and, if it is proven now, if nobody heard the node meanwhile.

    Raises:
        ValueError: a state without what belongs to it, which is a defect of the caller.
    """
    if fence.state == FenceState.PROVEN and fence.proof is None:
        raise ValueError(f"fence {fence.id} cannot be proven without a proof")
    changed = dataclasses.replace(fence, version=fence.version + 1)
    conditions: list[Condition] = [fences.c.id == fence.id, fences.c.version == fence.version]
    if fence.state == FenceState.PROVEN and fence.proof is not None and fence.proof.method != FENCE_METHOD_OPERATOR:
        conditions.append(or_(fences.c.heard_by == "", fences.c.state == FenceState.PROVEN))
    if connection.execute(update(fences).where(*conditions).values(_values(changed))).rowcount == 0:
        stored = get_fence(connection, fence.id)
        if stored is not None and stored.state == FenceState.OPEN and stored.heard_by:
            raise ha_errors.fence_objected(fence.id, fence.node_id, stored.heard_by)
        raise errors.concurrent_change("fence", fence.id)
    if not changed.is_current:
        marked = update(nodes).where(nodes.c.id == fence.node_id, nodes.c.fence_token < fence.token)
        connection.execute(marked.values(fence_token=fence.token, version=nodes.c.version + 1))
    return changed


def current_fences(connection: Connection) -> list[Fence]:
    """Those that are open or proven, oldest first."""
    current = select(fences).where(fences.c.current_node_id.is_not(None)).order_by(fences.c.token)
    return [_fence_from_row(row) for row in connection.execute(current)]


def list_fences(connection: Connection, wanted: FenceFilter, after: Cursor | None, limit: int) -> Page[Fence]:
    """Read a page, newest first."""
    columns = fences.c
    conditions: list[Condition] = []
    if wanted.node_id:
        conditions.append(columns.node_id == wanted.node_id)
    if wanted.only_current:
        conditions.append(columns.current_node_id.is_not(None))
    total_count = connection.execute(select(func.count()).select_from(fences).where(*conditions)).scalar_one()
    if after is not None:
        position = tuple_(literal(after.created_at, UtcMicroseconds), literal(after.id))
        conditions.append(tuple_(columns.opened_at, columns.id) < position)
    query = select(fences).where(*conditions).order_by(columns.opened_at.desc(), columns.id.desc())
    found = [_fence_from_row(row) for row in connection.execute(query.limit(limit + 1))]
    items = found[:limit]
    more = len(found) > limit
    return Page(items, Cursor(items[-1].opened_at, items[-1].id) if more else None, total_count)


def object_to_fences(connection: Connection, node_ids: Collection[str], heard_by: str) -> list[str]:
    """Note in fences that the node is heard, where nobody did; their new version lets no proof of before pass.

    Not where the whole host is proven dead: there is nothing left to object to.
    """
    if not node_ids:
        return []
    objected = (
        update(fences)
        .where(fences.c.current_node_id.in_(sorted(node_ids)))
        .where(or_(fences.c.state == FenceState.OPEN, fences.c.method.in_(PROTECTED_ONLY)))
        .where(fences.c.heard_by == "")
        .values(heard_by=heard_by, version=fences.c.version + 1)
        .returning(fences.c.node_id)
    )
    return sorted(row.node_id for row in connection.execute(objected))


def forget_fences(connection: Connection, ended_before: datetime) -> int:
    """Remove those that ended before, but never the newest of a node: the next token is counted from what is stored."""
    newest = select(func.max(fences.c.token)).group_by(fences.c.node_id)
    old = delete(fences).where(
        fences.c.current_node_id.is_(None), fences.c.ended_at < ended_before, fences.c.token.not_in(newest)
    )
    return connection.execute(old).rowcount


def marks(connection: Connection) -> Marks:
    """Read what a process that grants leases must know."""
    revoked = {row.node_id: row.token for row in _CURRENT.all(connection, {})}
    return Marks(
        epoch=get_leadership(connection).epoch,
        settings=get_settings(connection),
        revoked=revoked,
        tokens={row.id: row.fence_token for row in _TOKENS.all(connection, {})} | revoked,
    )


# -- guards


def get_guards(connection: Connection) -> list[NodeGuard]:
    """What is recorded of every host's guard."""
    return [
        NodeGuard(row.node_id, row.ha_version, row.can_self_fence, row.obstacle, row.boot_id, row.noted_at)
        for row in connection.execute(select(node_guards).order_by(node_guards.c.node_id))
    ]


def note_guards(connection: Connection, guards: Sequence[NodeGuard]) -> None:
    """Write what hosts told; of nodes that are gone nothing.

    Two processes may write what they heard of one host in either order. So a host that could not fence itself can do
    so again only by something heard later, while that it cannot is believed at any time.
    """
    in_order = sorted(guards, key=lambda guard: guard.node_id)
    held = [guard for guard in in_order if node_rows.hold(connection, guard.node_id)]
    known = select(node_guards).where(node_guards.c.node_id.in_([guard.node_id for guard in held]))
    stored = {row.node_id: row for row in connection.execute(known)}
    new = []
    for guard in held:
        row, values = stored.get(guard.node_id), _guard_values(guard)
        if row is None:
            new.append(values)
            continue
        values["ha_version"] = case(
            (node_guards.c.ha_version > guard.ha_version, node_guards.c.ha_version), else_=guard.ha_version
        )
        if guard.can_self_fence and not row.can_self_fence and guard.noted_at <= row.noted_at:
            continue
        connection.execute(update(node_guards).where(node_guards.c.node_id == guard.node_id).values(values))
    if new:
        connection.execute(insert(node_guards), new)


# -- rows and records


def _guard_values(guard: NodeGuard) -> dict[str, Any]:
    """Every column of a guard's row."""
    return {column.name: getattr(guard, column.name) for column in node_guards.columns}


def _values(fence: Fence) -> dict[str, Any]:
    """Every column of a fence's row."""
    proof = fence.proof
    return {
        "id": fence.id,
        "node_id": fence.node_id,
        "token": fence.token,
        "epoch": fence.epoch,
        "state": fence.state,
        "reason": fence.reason,
        "opened_at": fence.opened_at,
        "heard_by": fence.heard_by,
        "method": proof.method if proof else 0,
        "evidence": proof.evidence if proof else "",
        "witness": proof.witness if proof else "",
        "proof_epoch": proof.epoch if proof else 0,
        "proven_at": proof.proven_at if proof else None,
        "ended_at": fence.ended_at,
        "version": fence.version,
        "current_node_id": fence.node_id if fence.is_current else None,
        "asked_by": fence.asked_by,
        "boot_id": fence.boot_id,
    }


def _fence_from_row(row: StoredRow) -> Fence:
    proof = None
    if row.proven_at is not None:
        proof = FenceProof(row.method, row.evidence, row.witness, row.proof_epoch, row.proven_at)
    return Fence(
        id=row.id,
        node_id=row.node_id,
        token=row.token,
        epoch=row.epoch,
        state=row.state,
        reason=row.reason,
        opened_at=row.opened_at,
        heard_by=row.heard_by,
        proof=proof,
        ended_at=row.ended_at,
        version=row.version,
        asked_by=row.asked_by,
        boot_id=row.boot_id,
    )


def _settings_from_row(row: StoredRow) -> HaSettings:
    return HaSettings(
        row.is_armed, row.reason, row.changed_by, row.changed_at, row.version, longest_wait_ms=row.longest_wait_ms
    )
