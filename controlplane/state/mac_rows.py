"""Statements about MAC addresses: whose each is. Each function runs in an open transaction and blocks.

The addresses are those of the VMs' specs, written in the same transaction; the primary key is what keeps two VMs that
are made at the same moment from getting the same one.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, delete, insert, select
from sqlalchemy.exc import IntegrityError

from controlplane.domain import errors
from controlplane.state.faults import Constraint, broken_constraint
from controlplane.state.schema import vm_macs
from limiquantix.compute.v1.vm_pb2 import VmSpec


def addresses_of(spec: VmSpec) -> frozenset[str]:
    """Return the addresses that a spec's cards have."""
    return frozenset(nic.mac_address.lower() for nic in spec.nics if nic.mac_address)


def holders(connection: Connection, mac_addresses: Collection[str]) -> dict[str, str]:
    """Ids of the VMs that have these addresses, by address."""
    if not mac_addresses:
        return {}
    taken = select(vm_macs).where(vm_macs.c.mac_address.in_(sorted(mac_addresses)))
    return {row.mac_address: row.vm_id for row in connection.execute(taken)}


def replace(connection: Connection, vm_id: str, before: frozenset[str] | None, after: frozenset[str]) -> None:
    """Write which addresses a VM has; `before` is None if it is not known which it had.

    Raises:
        AlreadyExists: another VM has one of them.
    """
    if before is None:
        connection.execute(delete(vm_macs).where(vm_macs.c.vm_id == vm_id))
        before = frozenset()
    if gone := before - after:
        condition = (vm_macs.c.vm_id == vm_id) & vm_macs.c.mac_address.in_(sorted(gone))
        connection.execute(delete(vm_macs).where(condition))
    new = after - before
    if not new:
        return
    for address, holder_id in holders(connection, new).items():
        raise errors.mac_taken(address, holder_id)
    try:
        connection.execute(insert(vm_macs), [{"mac_address": address, "vm_id": vm_id} for address in sorted(new)])
    except IntegrityError as error:
        if broken_constraint(error) in (Constraint.PRIMARY_KEY, Constraint.UNIQUE):
            raise errors.mac_taken(", ".join(sorted(new)), "") from error
        raise
