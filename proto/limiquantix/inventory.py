"""The digest of a host's inventory, which both sides of a heartbeat work out for themselves and compare."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from limiquantix.compute.v1.node_service_pb2 import VMPowerState


def state_hash(states: Mapping[str, VMPowerState.ValueType]) -> str:
    """Digest which VMs a host has, by id, and their power states; see `SyncFullStateRequest.state_hash`."""
    lines = "".join(f"{vm_id} {int(states[vm_id])}\n" for vm_id in sorted(states))
    return hashlib.sha256(lines.encode()).hexdigest()
