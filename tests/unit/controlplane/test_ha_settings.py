"""The section `ha`: what is not given follows from the rest, and what would let a VM run twice is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.config import load_config
from controlplane.domain.ha_times import HaTimes, TimesUnsafe
from controlplane.ha.model import HaConfig, ShutdownPolicy
from controlplane.ha_settings import AdmissionPolicy, HighAvailabilitySettings

SPAN_S = st.floats(0.1, 120.0)


def test_defaults_are_those_of_the_core_and_safe() -> None:
    ha = load_config(None, {}).ha

    assert ha.times == HaTimes()
    assert ha.rules == HaConfig()
    assert (ha.admission.policy, ha.admission.failures) == (AdmissionPolicy.FAILURES, 1)


def test_times_follow_the_heartbeat_interval() -> None:
    times = HighAvailabilitySettings(heartbeat_interval_s=5).times

    assert (times.suspect_after_s, times.lease_s) == (16.0, 21.0)
    assert times.least_proof_wait_s() <= times.proof_wait_s < times.least_proof_wait_s() + 0.11


def test_what_is_given_reaches_the_core() -> None:
    ha = HighAvailabilitySettings.model_validate(
        {"suspect_after_s": 20, "lease_s": 15, "proof_wait_s": 60, "brake_share": 0.7, "shutdown_policy": "migrate"}
    )

    rules = ha.rules
    assert (rules.suspect_after_s, rules.proof_wait_s, rules.brake_share) == (20.0, 60.0, 0.7)
    assert rules.shutdown_policy is ShutdownPolicy.MIGRATE


@pytest.mark.parametrize(
    ("given_settings", "named"),
    [
        ({"proof_wait_s": 13.5}, "proof_wait_s is 13.5"),
        ({"proof_wait_s": 13.6, "pause_s": 1.2}, "proof_wait_s is 13.6"),
        ({"lease_s": 6}, "lease_s is 6"),
        ({"heartbeat_interval_s": 3, "lease_s": 9}, "lease_s is 9"),
        ({"suspect_after_s": 4}, "suspect_after_s is 4"),
        ({"clock_drift": 0.5}, "clock_drift"),
        ({"lease_s": float("inf")}, "lease_s"),
        ({"proof_wait_s": float("nan")}, "proof_wait_s"),
        ({"admission": {"policy": "some"}}, "admission.policy"),
    ],
)
def test_unsafe_or_wrong_settings_are_refused_when_the_configuration_is_loaded(
    given_settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        load_config(None, {"ha": given_settings})
    assert named in str(caught.value)


@given(
    interval_s=st.integers(1, 60),
    spans_s=st.fixed_dictionaries(dict.fromkeys(("freshness_s", "kill_s", "pause_s", "objection_s"), SPAN_S)),
    drift=st.floats(0.0, 0.09),
    proof_wait_s=st.none() | st.floats(1.0, 600.0),
)
def test_a_host_outlives_no_proof_whatever_the_clocks_do(
    interval_s: int, spans_s: dict[str, float], drift: float, proof_wait_s: float | None
) -> None:
    given_settings = {**spans_s, "heartbeat_interval_s": interval_s, "clock_drift": drift, "proof_wait_s": proof_wait_s}
    try:
        times = HighAvailabilitySettings.model_validate(given_settings).times
    except pydantic.ValidationError:
        assert proof_wait_s is not None  # what is derived is safe
        return

    # The grantor's and the host's clocks run as slowly as is allowed, that of the process that waits as fast.
    real_end_s = times.freshness_s * (1 + drift) + (times.lease_s + times.kill_s + times.pause_s) * (1 + drift)
    real_proof_s = times.proof_wait_s / (1 + drift)
    assert real_proof_s >= real_end_s - 1e-9
    assert times.lease_s > 3 * interval_s
    assert times.suspect_after_s > 2 * interval_s


@given(st.floats(0.01, 50.0))
def test_any_time_below_the_least_is_refused(short_s: float) -> None:
    times = HaTimes()
    with pytest.raises(TimesUnsafe, match="proof_wait_s"):
        replace(times, proof_wait_s=times.least_proof_wait_s() - short_s).check()
