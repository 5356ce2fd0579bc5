"""Snapshots of one host's VMs: the optional power to put a VM back to what it was."""

from __future__ import annotations

from abc import ABC


class Snapshots(ABC):  # noqa: B024 - being built
    """Snapshots of one host's VMs; see `Hypervisor` for the rules that hold for every method."""
