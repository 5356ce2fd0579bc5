"""What the VMs of one host use, all in one reading."""

from __future__ import annotations

from abc import ABC


class Statistics(ABC):  # noqa: B024 - being built
    """What the VMs of one host use, all in one reading; see `Hypervisor` for the rules that hold for every method."""
