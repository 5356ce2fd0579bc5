"""What is kept of a guest's own word: the system inside and its addresses, as its agent told last."""

from __future__ import annotations

from collections.abc import Sequence

from limiquantix.compute.v1.vm_pb2 import GuestInfo, VmStatus

_CLOCK_JUMP_S = 60
"""A host's clock that went back further is another clock from here on; by less, an older report came after a newer."""


def without_guest(details: VmStatus) -> VmStatus:
    """Return the details without a guest's word, as of a VM that is off; the same object if there is none."""
    if not details.HasField("guest_info") and not details.ip_addresses:
        return details
    left = VmStatus()
    left.CopyFrom(details)
    left.ClearField("guest_info")
    left.ClearField("ip_addresses")
    return left


def with_guest(details: VmStatus, info: GuestInfo, ip_addresses: Sequence[str]) -> VmStatus:
    """Return the details with what a guest's agent told now; the same object if it told nothing new.

    How long it is up and when it said so are kept as of the moment in which something else changed. An agent without
    a version is none.
    """
    known = details.guest_info
    age_s = known.last_heartbeat.seconds - info.last_heartbeat.seconds
    if 0 < age_s < _CLOCK_JUMP_S:
        return details
    if not info.agent_version:
        return without_guest(details)
    if _lasting(known) == _lasting(info) and list(details.ip_addresses) == list(ip_addresses):
        return details
    told = without_guest(details)
    if told is details:
        told = VmStatus()
        told.CopyFrom(details)
    told.guest_info.CopyFrom(info)
    told.ip_addresses.extend(ip_addresses)
    return told


def _lasting(info: GuestInfo) -> tuple[str, ...]:
    return (info.os_name, info.os_version, info.kernel_version, info.hostname, info.agent_version)
