"""Fences, settings and times of high availability as the contract's messages."""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.domain.documents import timestamp
from controlplane.domain.fencing import Fence, FenceProof, HaSettings
from controlplane.domain.ha_times import HaTimes
from limiquantix.compute.v1 import ha_service_pb2 as api

_MS = 1000
_PPM = 1_000_000


def fence(record: Fence, hostname: str, restarted_vm_ids: Sequence[str] = ()) -> api.Fence:
    """Encode a fence; `hostname` is "" if its node is gone."""
    message = api.Fence(
        id=record.id,
        node_id=record.node_id,
        hostname=hostname,
        state=record.state,
        token=record.token,
        epoch=record.epoch,
        reason=record.reason,
        opened_at=timestamp(record.opened_at),
        heard_by=record.heard_by,
        restarted_vm_ids=restarted_vm_ids,
    )
    if record.proof is not None:
        message.proof.CopyFrom(_proof(record.proof))
    if record.ended_at is not None:
        message.ended_at.CopyFrom(timestamp(record.ended_at))
    return message


def _proof(record: FenceProof) -> api.FenceProof:
    return api.FenceProof(
        method=record.method,
        evidence=record.evidence,
        witness=record.witness,
        epoch=record.epoch,
        proven_at=timestamp(record.proven_at),
    )


def settings(record: HaSettings) -> api.HaSettings:
    """Encode the settings."""
    message = api.HaSettings(
        is_armed=record.is_armed, reason=record.reason, changed_by=record.changed_by, version=record.version
    )
    if record.changed_at is not None:
        message.changed_at.CopyFrom(timestamp(record.changed_at))
    return message


def times(record: HaTimes) -> api.HaTimes:
    """Encode the times."""
    return api.HaTimes(
        heartbeat_interval_ms=round(record.heartbeat_interval_s * _MS),
        suspect_after_ms=round(record.suspect_after_s * _MS),
        lease_ms=round(record.lease_s * _MS),
        freshness_ms=round(record.freshness_s * _MS),
        kill_ms=round(record.kill_s * _MS),
        pause_ms=round(record.pause_s * _MS),
        clock_drift_ppm=round(record.clock_drift * _PPM),
        proof_wait_ms=round(record.proof_wait_s * _MS),
    )
