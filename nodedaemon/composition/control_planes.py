"""Connections to the control plane."""

from __future__ import annotations

from contextlib import AsyncExitStack

from nodedaemon.composition.machine import Machine
from nodedaemon.control_plane import GrpcControlPlane


class ControlPlanes:
    """Connections: `any` goes to whichever instance answers, `each` has all.

    A host that shall not register has none: it tells nobody anything, and only renews its certificate.
    """

    def __init__(self, machine: Machine, stack: AsyncExitStack) -> None:
        addresses = machine.control_planes if machine.config.control_plane.registration_enabled else ()
        self.any = GrpcControlPlane(addresses, machine.credentials) if addresses else None
        self.each = [GrpcControlPlane([address], machine.credentials) for address in addresses]
        for connection in (*self.each, *((self.any,) if self.any is not None else ())):
            stack.push_async_callback(connection.close)
