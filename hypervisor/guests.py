"""What the agent inside a guest can be asked: the optional power to look and act inside."""

from __future__ import annotations

from abc import ABC


class GuestAgents(ABC):  # noqa: B024 - being built
    """What the agent inside a guest can be asked; see `Hypervisor` for the rules that hold for every method."""
