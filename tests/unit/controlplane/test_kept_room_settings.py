"""What room is kept, as the configuration has it, and what balancing makes of that."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.composition.rules import headroom_failures
from controlplane.config import ControlPlaneConfig, DrsSettings
from controlplane.domain.admission import KeptRoom
from controlplane.ha_settings import AdmissionSettings, HighAvailabilitySettings


@pytest.mark.parametrize(
    ("settings", "kept", "words"),
    [
        ({}, KeptRoom(failures=1), "room for 1 failed node"),
        ({"failures": 2}, KeptRoom(failures=2), "room for 2 failed nodes"),
        ({"policy": "share"}, KeptRoom(share=0.25), "25% of all room"),
        ({"policy": "none"}, KeptRoom(), "none"),
    ],
)
def test_settings_say_what_is_kept(settings: dict[str, Any], kept: KeptRoom, words: str) -> None:
    found = AdmissionSettings.model_validate(settings).kept_room

    assert (found, found.words) == (kept, words)


@pytest.mark.parametrize(
    ("said", "admission", "count"),
    [
        (None, {"failures": 3}, 3),
        (0, {"failures": 3}, 0),
        (None, {"policy": "share"}, 1),
        (None, {"policy": "none"}, 1),
    ],
)
def test_balancing_leaves_room_for_as_many_failures_unless_it_is_told_otherwise(
    said: int | None, admission: dict[str, Any], count: int
) -> None:
    ha = HighAvailabilitySettings(admission=AdmissionSettings.model_validate(admission))

    assert headroom_failures(ControlPlaneConfig(drs=DrsSettings(headroom_failures=said), ha=ha)) == count
