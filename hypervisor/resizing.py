"""CPU and memory of running VMs: the optional power to change them without a restart."""

from __future__ import annotations

from abc import ABC


class Resizing(ABC):  # noqa: B024 - being built
    """CPU and memory of running VMs; see `Hypervisor` for the rules that hold for every method."""
