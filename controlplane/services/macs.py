"""MAC addresses for NICs that were given none, which no other VM has."""

from __future__ import annotations

import secrets

from controlplane.domain import errors
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.vm_pb2 import VmSpec

_QEMU_PREFIX = "52:54:00"
"""Locally administered prefix that QEMU and libvirt use for virtual machines."""
_MAX_DRAWS = 8
"""Draws until a free address is found; with a hundred thousand cards, one draw in 168 finds a taken one."""


def random_mac() -> str:
    """Make a MAC address at random: 24 free bits, drawn anew for each NIC."""
    tail = secrets.token_bytes(3)
    return _QEMU_PREFIX + "".join(f":{byte:02x}" for byte in tail)


async def free_mac(tx: Transaction, wanted: str) -> str:
    """Return the address that was asked for, or if that is "", one that nobody has now.

    Raises:
        AlreadyExists: somebody has it.
    """
    drawn = wanted.lower() or random_mac()
    for _ in range(_MAX_DRAWS):
        holder_id = (await tx.mac_holders([drawn])).get(drawn)
        if holder_id is None:
            return drawn
        if wanted:
            raise errors.mac_taken(drawn, holder_id)
        drawn = random_mac()
    return drawn


async def with_free_macs(tx: Transaction, spec: VmSpec, asked: frozenset[str]) -> VmSpec:
    """Return a spec whose made addresses nobody has now; those that were asked for are told apart by `asked`.

    Raises:
        AlreadyExists: somebody has one that was asked for.
    """
    free = spec
    for _ in range(_MAX_DRAWS):
        holders = await tx.mac_holders([nic.mac_address for nic in free.nics]) if free.nics else {}
        if not holders:
            break
        for address, holder_id in holders.items():
            if address in asked:
                raise errors.mac_taken(address, holder_id)
        free = VmSpec()
        free.CopyFrom(spec)
        for nic in free.nics:
            if nic.mac_address in holders:
                nic.mac_address = random_mac()
        spec = free
    return free


def asked_macs(spec: VmSpec) -> frozenset[str]:
    """Return the addresses that a caller asked for."""
    return frozenset(nic.mac_address.lower() for nic in spec.nics if nic.mac_address)
