"""Configuration of high availability: the section `ha`, a part of `config.ControlPlaneConfig`."""

from __future__ import annotations

import enum
import math
from dataclasses import replace
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from controlplane.domain.admission import NOTHING_KEPT, KeptRoom
from controlplane.domain.ha_times import HaTimes
from controlplane.ha.model import HaConfig, ShutdownPolicy

_Seconds = Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)]
_Share = Annotated[float, Field(gt=0, le=1)]


class AdmissionPolicy(enum.StrEnum):
    """What room is kept for the VMs of nodes that fail."""

    FAILURES = "failures"
    """As much as so many failed nodes need."""
    SHARE = "share"
    """A share of all capacity."""
    NONE = "none"


class AdmissionSettings(BaseModel):
    """Room that is kept so that VMs can be restarted; what would use it up is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: AdmissionPolicy = AdmissionPolicy.FAILURES
    failures: Annotated[int, Field(ge=1, le=8)] = 1
    """How many nodes may fail, with policy `failures`."""
    share_percent: Annotated[float, Field(gt=0, lt=100)] = 25.0
    """Of all capacity, with policy `share`."""

    @property
    def kept_room(self) -> KeptRoom:
        """What placements leave free."""
        if self.policy is AdmissionPolicy.FAILURES:
            return KeptRoom(failures=self.failures)
        return KeptRoom(share=self.share_percent / 100) if self.policy is AdmissionPolicy.SHARE else NOTHING_KEPT


class HighAvailabilitySettings(BaseModel):
    """What is done about nodes that fall silent, and when.

    Times that are not given follow from the others: `suspect_after_s` is 3 heartbeat intervals and a second, `lease_s`
    is 4 and a second, `proof_wait_s` the least that is safe. `HaTimes` says what they mean and which are refused. All
    control planes of a cluster must have the same: who waits for a lease to end counts on what others granted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    """False: no leases, no fences, no restarts elsewhere; silent nodes are only marked so."""
    heartbeat_interval_s: Annotated[int, Field(ge=1, le=60)] = 2
    """What daemons are told, in place of `nodes.heartbeat_interval_s`."""
    suspect_after_s: _Seconds | None = None
    lease_s: _Seconds | None = None
    objection_s: _Seconds = 1.5
    freshness_s: _Seconds = 2.0
    kill_s: _Seconds = 1.5
    pause_s: _Seconds = 1.0
    clock_drift: Annotated[float, Field(ge=0, lt=0.1)] = 0.001
    proof_wait_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] | None = None
    max_fencing_share: _Share = 0.34
    """Of all nodes, at most this many are fenced at once, but always one."""
    brake_share: _Share = 0.5
    """If at least this many nodes are silent at once, nothing is done: the fault is taken to be on our side."""
    shutdown_policy: ShutdownPolicy = ShutdownPolicy.CONDITIONAL
    frozen_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """How long VMs of a host that said it reboots are left to it."""
    admission: AdmissionSettings = AdmissionSettings()

    @property
    def times(self) -> HaTimes:
        """All times, those that were not given derived from the others."""
        given = HaTimes(
            heartbeat_interval_s=float(self.heartbeat_interval_s),
            suspect_after_s=self.suspect_after_s or 3.0 * self.heartbeat_interval_s + 1,
            objection_s=self.objection_s,
            lease_s=self.lease_s or 4.0 * self.heartbeat_interval_s + 1,
            freshness_s=self.freshness_s,
            kill_s=self.kill_s,
            pause_s=self.pause_s,
            clock_drift=self.clock_drift,
            proof_wait_s=self.proof_wait_s or math.inf,
        )
        if self.proof_wait_s is not None:
            return given
        least_s = given.least_proof_wait_s()
        # The product may be rounded down to a whole number.
        return replace(given, proof_wait_s=max(math.ceil(least_s * 10) / 10, least_s))

    @property
    def rules(self) -> HaConfig:
        """What the core decides by."""
        times = self.times
        return HaConfig(
            suspect_after_s=times.suspect_after_s,
            objection_s=times.objection_s,
            proof_wait_s=times.proof_wait_s,
            max_fencing_share=self.max_fencing_share,
            brake_share=self.brake_share,
            shutdown_policy=self.shutdown_policy,
            frozen_s=self.frozen_s,
        )

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        self.times.check()
        return self
