"""Statements about the authority, join tokens and machines. Each function runs in an open transaction and blocks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, or_, select, union_all, update
from sqlalchemy.exc import IntegrityError

from controlplane.domain import machine_errors
from controlplane.domain.machines import REFUSALS_KEPT, JoinToken, MachineRecord, Revocation, StoredAuthority
from controlplane.state.schema_security import authorities, departed_machines, join_tokens, machines

_ONLY = 1
"""The row is there from the start, empty: whoever fills it first made the authority."""
_EMPTY = ""

# -- the authority


def get_authority(connection: Connection) -> StoredAuthority | None:
    """Read it."""
    found = select(authorities).where(authorities.c.id == _ONLY, authorities.c.certificate_pem != _EMPTY)
    row = connection.execute(found).one_or_none()
    return StoredAuthority(row.cluster_id, row.certificate_pem, row.sealed_key, row.made_at) if row else None


def insert_authority(connection: Connection, made: StoredAuthority) -> bool:
    """Fill the row if it is empty."""
    empty = update(authorities).where(authorities.c.id == _ONLY, authorities.c.certificate_pem == _EMPTY)
    filled = empty.values(
        cluster_id=made.cluster_id,
        certificate_pem=made.certificate_pem,
        sealed_key=made.sealed_key,
        made_at=made.made_at,
    )
    return connection.execute(filled).rowcount == 1


def update_authority_key(connection: Connection, sealed_key: bytes) -> None:
    """Write the key, sealed anew."""
    connection.execute(update(authorities).where(authorities.c.id == _ONLY).values(sealed_key=sealed_key))


# -- tokens


def insert_token(connection: Connection, token: JoinToken) -> None:
    """Add one."""
    connection.execute(
        insert(join_tokens).values(
            id=token.id,
            digest=token.digest,
            created_by=token.created_by,
            created_at=token.created_at,
            expires_at=token.expires_at,
            hostname=token.hostname,
            node_id=token.node_id,
            labels=dict(token.labels),
            used_at=token.used_at,
            used_by=token.used_by,
            revoked_at=token.revoked_at,
        )
    )


def get_token(connection: Connection, token_id: str) -> JoinToken | None:
    """Read one."""
    row = connection.execute(select(join_tokens).where(join_tokens.c.id == token_id)).one_or_none()
    return _token(row) if row is not None else None


def list_tokens(connection: Connection) -> Sequence[JoinToken]:
    """Read all, newest first."""
    rows = connection.execute(select(join_tokens).order_by(join_tokens.c.created_at.desc(), join_tokens.c.id))
    return [_token(row) for row in rows]


def use_token(connection: Connection, token_id: str, node_id: str, now: datetime) -> bool:
    """Use one up, by one statement that has all that makes it good as its condition."""
    good = update(join_tokens).where(
        join_tokens.c.id == token_id,
        join_tokens.c.used_at.is_(None),
        join_tokens.c.revoked_at.is_(None),
        join_tokens.c.created_at <= now,
        join_tokens.c.expires_at > now,
    )
    return connection.execute(good.values(used_at=now, used_by=node_id)).rowcount == 1


def revoke_token(connection: Connection, token_id: str, now: datetime) -> bool:
    """Have one be of no use."""
    unused = update(join_tokens).where(
        join_tokens.c.id == token_id, join_tokens.c.used_at.is_(None), join_tokens.c.revoked_at.is_(None)
    )
    return connection.execute(unused.values(revoked_at=now)).rowcount == 1


def forget_tokens(connection: Connection, expired_before: datetime) -> int:
    """Remove old ones."""
    return connection.execute(delete(join_tokens).where(join_tokens.c.expires_at < expired_before)).rowcount


def _token(row: Row[Any]) -> JoinToken:
    return JoinToken(
        id=row.id,
        digest=row.digest,
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        hostname=row.hostname,
        node_id=row.node_id,
        labels=row.labels,
        used_at=row.used_at,
        used_by=row.used_by,
        revoked_at=row.revoked_at,
    )


# -- machines


def get_machine(connection: Connection, node_id: str) -> MachineRecord | None:
    """Read one by its node's id."""
    row = connection.execute(select(machines).where(machines.c.node_id == node_id)).one_or_none()
    return _machine(row) if row is not None else None


def find_machine(connection: Connection, hostname: str) -> MachineRecord | None:
    """Read one by its name."""
    row = connection.execute(select(machines).where(machines.c.hostname == hostname)).one_or_none()
    return _machine(row) if row is not None else None


def all_machines(connection: Connection) -> Sequence[MachineRecord]:
    """Read all."""
    return [_machine(row) for row in connection.execute(select(machines).order_by(machines.c.hostname))]


def machines_revision(connection: Connection) -> int:
    """Read how often something changed of which certificates are good."""
    return int(
        connection.execute(select(authorities.c.machines_revision).where(authorities.c.id == _ONLY)).scalar_one()
    )


def _machines_changed(connection: Connection) -> None:
    """Count a change."""
    counted = update(authorities).where(authorities.c.id == _ONLY)
    connection.execute(counted.values(machines_revision=authorities.c.machines_revision + 1))


def put_machine(connection: Connection, machine: MachineRecord) -> None:
    """Insert or replace one; when its certificates began to be good is left as it is."""
    values = {
        "hostname": machine.hostname,
        "joined_at": machine.joined_at,
        "issued_at": machine.issued_at,
        "ends_at": machine.ends_at,
        "labels": dict(machine.labels),
    }
    known = update(machines).where(machines.c.node_id == machine.node_id)
    try:
        if connection.execute(known.values(values)).rowcount == 0:
            connection.execute(
                insert(machines).values(node_id=machine.node_id, refused_before=machine.refused_before, **values)
            )
            _machines_changed(connection)
    except IntegrityError as error:
        raise machine_errors.hostname_taken(machine.hostname) from error


def refuse_certificates(connection: Connection, node_id: str, issued_before: datetime) -> bool:
    """Raise the age from which on certificates are good."""
    earlier = or_(machines.c.refused_before.is_(None), machines.c.refused_before < issued_before)
    known = update(machines).where(machines.c.node_id == node_id)
    if connection.execute(known.where(earlier).values(refused_before=issued_before)).rowcount:
        _machines_changed(connection)
        return True
    return get_machine(connection, node_id) is not None


def remove_machine(connection: Connection, node_id: str, now: datetime) -> bool:
    """Replace one by the little that is remembered of it."""
    machine, before = get_machine(connection, node_id), get_departure(connection, node_id)
    if machine is None:
        return False
    connection.execute(delete(machines).where(machines.c.node_id == node_id))
    columns = departed_machines.c
    connection.execute(
        delete(departed_machines).where(or_(columns.node_id == node_id, columns.refused_before < now - REFUSALS_KEPT))
    )
    earlier = (machine.refused_before, before.refused_before if before is not None else None)
    refused_before = max([now, *(at for at in earlier if at is not None)])
    connection.execute(insert(departed_machines).values(node_id=node_id, refused_before=refused_before))
    _machines_changed(connection)
    return True


def all_revocations(connection: Connection) -> Sequence[Revocation]:
    """Read those of machines and of departed ones; one that came back has the later of its two."""
    known = select(machines.c.node_id, machines.c.refused_before).where(machines.c.refused_before.is_not(None))
    found: dict[str, Revocation] = {}
    for row in connection.execute(union_all(known, select(departed_machines))):
        other = found.get(row.node_id)
        if other is None or other.refused_before < row.refused_before:
            found[row.node_id] = Revocation(row.node_id, row.refused_before)
    return list(found.values())


def get_departure(connection: Connection, node_id: str) -> Revocation | None:
    """Read what is remembered of a machine that was removed."""
    row = connection.execute(select(departed_machines).where(departed_machines.c.node_id == node_id)).one_or_none()
    return Revocation(row.node_id, row.refused_before) if row is not None else None


def _machine(row: Row[Any]) -> MachineRecord:
    return MachineRecord(
        node_id=row.node_id,
        hostname=row.hostname,
        joined_at=row.joined_at,
        issued_at=row.issued_at,
        ends_at=row.ends_at,
        labels=row.labels,
        refused_before=row.refused_before,
    )
