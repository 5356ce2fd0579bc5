"""Statements about sealed secrets; each blocks in an open transaction. Contracts: `audit_interface`."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from controlplane.domain import errors
from controlplane.state import records
from controlplane.state.audit_interface import SealedSecret
from controlplane.state.schema import operations, vms
from controlplane.state.schema_security import secrets
from controlplane.state.seals import seals_of


def all_of(connection: Connection, kind: str) -> dict[str, SealedSecret]:
    """All of a kind, by id."""
    theirs = select(secrets.c.id, secrets.c.sealed, secrets.c.created_at).where(secrets.c.kind == kind)
    return {row.id: SealedSecret(bytes(row.sealed), row.created_at) for row in connection.execute(theirs)}


def add(connection: Connection, kind: str, secret_id: str, sealed: bytes, at: datetime) -> None:
    """Keep one."""
    values = {"kind": kind, "id": secret_id, "sealed": sealed, "created_at": at}
    try:
        connection.execute(insert(secrets), [values])
    except IntegrityError as error:
        raise errors.concurrent_change("secret", f"{kind} {secret_id}") from error


def replace(connection: Connection, kind: str, secret_id: str, sealed: bytes) -> None:
    """Keep another sealed value."""
    that = update(secrets).where(secrets.c.kind == kind, secrets.c.id == secret_id)
    connection.execute(that.values(sealed=sealed))


def reseal_vms(connection: Connection, after_id: str, limit: int) -> str:
    """Seal what is not sealed with the newest key of some VMs."""
    seals = seals_of(connection)
    some = select(vms.c.id, vms.c.spec, vms.c.details).where(vms.c.id > after_id).order_by(vms.c.id).limit(limit)
    rows = connection.execute(some.with_for_update()).all()
    for row in rows:
        spec = records.resealed_spec(seals, row.spec, row.id)
        details = records.resealed_details(seals, row.details, row.id)
        if spec is not None or details is not None:
            new = {"spec": row.spec if spec is None else spec, "details": row.details if details is None else details}
            connection.execute(update(vms).where(vms.c.id == row.id).values(new))
    return rows[-1].id if len(rows) == limit else ""


def reseal_operations(connection: Connection, after_id: str, limit: int) -> str:
    """Seal what is not sealed with the newest key of some operations."""
    seals = seals_of(connection)
    columns = (operations.c.id, operations.c.parameters, operations.c.request_digest)
    some = select(*columns).where(operations.c.id > after_id).order_by(operations.c.id).limit(limit)
    rows = connection.execute(some.with_for_update()).all()
    for row in rows:
        resealed = {
            "parameters": records.resealed_parameters(seals, row.parameters, row.id),
            "request_digest": records.resealed_digest(seals, row.request_digest, row.id),
        }
        if new := {name: value for name, value in resealed.items() if value is not None}:
            connection.execute(update(operations).where(operations.c.id == row.id).values(new))
    return rows[-1].id if len(rows) == limit else ""
