"""Fences with sensible values, and the steps of their lives as one transaction each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from controlplane.domain.fencing import Fence, FenceProof, FenceState
from controlplane.state.interface import Store
from limiquantix.compute.v1.ha_service_pb2 import FENCE_METHOD_LEASE_EXPIRED, FenceMethod
from tests.support.builders import START_OF_TIME, make_id

WITNESS = "process-1"


def make_fence(node_id: str, **fields: Any) -> Fence:
    """Make an open fence, as it is before it has its token."""
    defaults: Mapping[str, Any] = {
        "id": make_id(),
        "node_id": node_id,
        "token": 0,
        "epoch": 1,
        "state": FenceState.OPEN,
        "reason": "it was silent",
        "opened_at": START_OF_TIME,
    }
    return Fence(**{**defaults, **fields})


def proven(
    fence: Fence,
    method: FenceMethod.ValueType = FENCE_METHOD_LEASE_EXPIRED,
    *,
    at: datetime = START_OF_TIME + timedelta(seconds=20),
) -> Fence:
    """Return the fence with a proof."""
    return replace(fence, state=FenceState.PROVEN, proof=FenceProof(method, "13.6 s passed", WITNESS, fence.epoch, at))


def ended(fence: Fence, *, at: datetime = START_OF_TIME + timedelta(seconds=60)) -> Fence:
    """Return the fence at its end."""
    return replace(fence, state=FenceState.ENDED, ended_at=at)


async def opened(store: Store, node_id: str, **fields: Any) -> Fence:
    """Open a fence, whoever leads."""
    return await store.run(lambda tx: tx.open_fence(make_fence(node_id, **fields)))


async def written(store: Store, fence: Fence) -> Fence:
    """Write a fence that was read before."""
    return await store.run(lambda tx: tx.update_fence(fence))
