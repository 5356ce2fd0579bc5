"""Find out whether guests can run on the processor itself, or have to be emulated.

Opening /dev/kvm is not proof: there are hosts (nested ones, with a paravirtual hypervisor) where it opens and an
ordinary guest kernel hangs in its first instructions. The processor's own flag for hardware virtualisation is missing
there, so both are asked for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

from hypervisor.errors import Unavailable
from hypervisor.types import Accelerator

AcceleratorChoice = Literal["auto", "kvm", "tcg"]

CPUINFO_PATH: Final = Path("/proc/cpuinfo")
KVM_PATH: Final = Path("/dev/kvm")

_VIRTUALISATION_FLAGS: Final = frozenset({"vmx", "svm"})
"""Intel's and AMD's. Source: Linux, Documentation/virt/kvm, and arch/x86/include/asm/cpufeatures.h."""


def detect_accelerator(
    requested: AcceleratorChoice = "auto", *, cpuinfo_path: Path = CPUINFO_PATH, kvm_path: Path = KVM_PATH
) -> Accelerator:
    """Choose how guests run on this host; "auto" prefers KVM. Touches two files, so it belongs off the event loop.

    Raises:
        Unavailable: KVM was requested and cannot be used; the message says why.
    """
    if requested == "tcg":
        return Accelerator.TCG
    obstacle = kvm_obstacle(cpuinfo_path, kvm_path)
    if not obstacle:
        return Accelerator.KVM
    if requested == "kvm":
        raise Unavailable(f"KVM cannot be used on this host: {obstacle}; choose the accelerator tcg to emulate instead")
    return Accelerator.TCG


def kvm_obstacle(cpuinfo_path: Path = CPUINFO_PATH, kvm_path: Path = KVM_PATH) -> str:
    """Say what keeps this host from running guests under KVM; "" if nothing does."""
    try:
        flags = _processor_flags(cpuinfo_path)
    except OSError as error:
        return f"{cpuinfo_path} cannot be read ({error.strerror})"
    if not flags & _VIRTUALISATION_FLAGS:
        return (
            f"{cpuinfo_path} shows neither vmx nor svm: the processor, or the firmware's settings, hide virtualisation"
        )
    try:
        os.close(os.open(kvm_path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{kvm_path} cannot be opened ({error.strerror})"
    return ""


def _processor_flags(cpuinfo_path: Path) -> frozenset[str]:
    """Return the first processor's flags; all processors of a host share them."""
    with cpuinfo_path.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            key, separator, words = line.partition(":")
            if separator and key.strip() == "flags":
                return frozenset(words.split())
    return frozenset()
