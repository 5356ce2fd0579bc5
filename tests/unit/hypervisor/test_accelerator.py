"""Which hosts get KVM: those whose processor shows it and whose /dev/kvm opens, no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from hypervisor.accelerator import AcceleratorChoice, detect_accelerator, kvm_obstacle
from hypervisor.errors import Unavailable
from hypervisor.types import Accelerator


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host with everything KVM needs; tests take away from it."""
    (tmp_path / "kvm").touch()
    set_flags(tmp_path, "fpu vmx sse2")
    return tmp_path


def set_flags(host: Path, flags: str) -> None:
    (host / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: vmx svm\nflags\t\t: {flags}\nbugs\t\t: x\n\n")


def detect(host: Path, requested: AcceleratorChoice = "auto") -> Accelerator:
    return detect_accelerator(requested, cpuinfo_path=host / "cpuinfo", kvm_path=host / "kvm")


@pytest.mark.parametrize("flag", ["vmx", "svm"])
def test_accelerator_with_the_flag_and_a_kvm_that_opens_is_kvm(host: Path, flag: str) -> None:
    set_flags(host, f"fpu {flag}")
    assert detect(host) is Accelerator.KVM
    assert detect(host, "kvm") is Accelerator.KVM
    assert kvm_obstacle(host / "cpuinfo", host / "kvm") == ""


def test_accelerator_with_kvm_that_opens_but_no_flag_is_tcg(host: Path) -> None:
    set_flags(host, "fpu hypervisor svm_lock vmxext")
    assert detect(host) is Accelerator.TCG


def test_accelerator_without_a_kvm_device_is_tcg(host: Path) -> None:
    (host / "kvm").unlink()
    assert detect(host) is Accelerator.TCG


def test_accelerator_on_a_processor_without_flags_is_tcg(host: Path) -> None:
    (host / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert detect(host) is Accelerator.TCG


def test_accelerator_with_unreadable_cpuinfo_is_tcg(host: Path) -> None:
    (host / "cpuinfo").unlink()
    assert detect(host) is Accelerator.TCG


def test_accelerator_tcg_requested_is_tcg_even_where_kvm_works(host: Path) -> None:
    assert detect(host, "tcg") is Accelerator.TCG


@pytest.mark.parametrize(("missing", "words"), [("cpuinfo", "cannot be read"), ("kvm", "cannot be opened")])
def test_accelerator_kvm_requested_in_vain_says_why(host: Path, missing: str, words: str) -> None:
    (host / missing).unlink()
    with pytest.raises(Unavailable, match=words):
        detect(host, "kvm")
