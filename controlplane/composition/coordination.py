"""Coordination with the other control planes on the same database."""

from __future__ import annotations

from controlplane.config import ControlPlaneConfig
from controlplane.coordination.factory import create_coordinator
from controlplane.coordination.interface import Coordinator


def coordinator_of(config: ControlPlaneConfig) -> Coordinator | None:
    """Make it, in the event loop of the process; None where high availability is switched off, which alone needs it.

    Raises:
        OSError: a TLS file cannot be read.
    """
    return create_coordinator(config.coordination) if config.ha.enabled else None
