"""Verdicts on hostile images, beside those of an inspector that others wrote for the same purpose."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from oslo_utils.imageutils import format_inspector

from nodedaemon.image_inspector import SourceFormat, inspect
from nodedaemon.image_tables import ImageRefused
from tests.support.hostile_images import Case, corpus

CASES = corpus()
SLOWEST_S = 10.0
_AS_STATED = {
    SourceFormat.QCOW2: {"qcow2"},
    SourceFormat.VMDK: {"vmdk"},
    SourceFormat.RAW: {"raw", "gpt", "iso"},
}


def _is_accepted(path: Path, stated: SourceFormat) -> bool:
    try:
        inspect(path, stated)
    except ImageRefused:
        return False
    return True


def _is_accepted_elsewhere(path: Path, stated: SourceFormat) -> bool:
    """Ask as OpenStack's image service does: is the file what it is stated to be, and safe as that?"""
    wrapper = format_inspector.InspectWrapper(io.BytesIO(path.read_bytes()))
    try:
        while wrapper.read(65_536):
            pass
        wrapper.close()
        found = wrapper.format
        if found is None or str(found) not in _AS_STATED[stated]:
            return False
        found.safety_check()
    except (format_inspector.ImageFormatError, format_inspector.SafetyCheckFailed):
        return False
    return True


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_image_verdict_is_that_of_the_independent_inspector_or_differs_for_a_reason(case: Case, tmp_path: Path) -> None:
    path = case.make(tmp_path)
    began_s = time.monotonic()

    verdict = _is_accepted(path, case.stated)

    assert time.monotonic() - began_s < SLOWEST_S
    assert verdict is case.is_sound
    assert (verdict == _is_accepted_elsewhere(path, case.stated)) is (not case.differs)


def test_corpus_every_difference_but_one_is_stricter() -> None:
    assert [case.name for case in CASES if case.differs and case.is_sound] == [
        "raw sound with code where partitions stand"
    ]
    assert len({case.name for case in CASES}) == len(CASES)
