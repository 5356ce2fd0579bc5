"""Devices of VMs that are there already: the optional power to attach, detach and change them, running or not."""

from __future__ import annotations

from abc import ABC


class Devices(ABC):  # noqa: B024 - being built
    """Devices of VMs that are there already; see `Hypervisor` for the rules that hold for every method."""
