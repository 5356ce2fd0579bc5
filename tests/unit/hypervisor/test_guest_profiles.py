"""The table of guest systems, held against what virt-install makes for the same ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from lxml import etree

from hypervisor.guest_profiles import (
    HYPERV_FEATURES,
    PROFILES,
    UNIVERSAL_HYPERV_FEATURES,
    GuestFamily,
    profile_of,
)
from hypervisor.hardware import Hardware
from hypervisor.libvirt import domain_xml
from hypervisor.libvirt.hardware_xml import HostTraits
from hypervisor.types import Accelerator, CpuTopology, VmConfig, VncConsole
from tests.support.virt_install_facts import FACTS, Facts, read_facts

KVM = HostTraits(Accelerator.KVM, Path("/c"), hyperv_features=HYPERV_FEATURES)


CASES = [pytest.param(family, name, facts, id=name) for (family, name), facts in FACTS.items()]


def ours(family: GuestFamily) -> etree._Element:
    config = VmConfig(
        "5f7c1a52-0b3e-4d0c-9a56-2f1f0c9e4b11",
        "g",
        CpuTopology(2),
        2048,
        vnc=VncConsole("x"),
        hardware=Hardware(guest=family),
    )
    return domain_xml.build_domain(config, KVM)


@pytest.mark.parametrize(("family", "name", "facts"), CASES)
def test_profile_chooses_what_virt_install_does_and_more_enlightenments_only(
    family: GuestFamily, name: str, facts: Facts
) -> None:
    mine, profile = read_facts(ours(family)), profile_of(family)
    assert (mine.clock, mine.timers, mine.vmport) == (facts.clock, _without_kvmclock(facts, mine), facts.vmport)
    assert mine.hyperv[: len(facts.hyperv)] == facts.hyperv
    assert set(mine.hyperv) <= set(HYPERV_FEATURES)
    if not profile.has_virtio_drivers:
        assert profile.suggested_disk_bus == {"ide": "sata"}.get(facts.disk_bus, facts.disk_bus)
        assert profile.suggested_nic_model == facts.nic_model


def _without_kvmclock(facts: Facts, mine: Facts) -> tuple[str, ...]:
    """We say that Solaris gets no clock of KVM's; virt-install says nothing."""
    return (*facts.timers, "kvmclock") if "kvmclock" in mine.timers else facts.timers


def test_every_family_has_a_profile_whose_enlightenments_come_after_those_they_need() -> None:
    assert PROFILES.keys() == set(GuestFamily)
    for profile in PROFILES.values():
        assert list(profile.hyperv_features) == [name for name in HYPERV_FEATURES if name in profile.hyperv_features]
        if profile.hyperv_features:
            assert set(UNIVERSAL_HYPERV_FEATURES) <= set(profile.hyperv_features)


def test_only_macos_is_refused_and_says_why() -> None:
    refused = {family: profile.refusal for family, profile in PROFILES.items() if profile.refusal}
    assert set(refused) == {GuestFamily.MACOS}
    assert "licence" in refused[GuestFamily.MACOS]
