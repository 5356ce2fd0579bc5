"""Where a call comes from, in tests without a transport."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class FakeOrigin:
    """A `CallOrigin` that says what it is told to."""

    metadata: tuple[tuple[str, str | bytes], ...] = ()
    address: str = "ipv4:192.0.2.7:51234"
    tls: Mapping[str, list[bytes]] = field(default_factory=dict)

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Request metadata."""
        return self.metadata

    def peer(self) -> str:
        """From where."""
        return self.address

    def auth_context(self) -> Mapping[str, list[bytes]]:
        """What TLS knows."""
        return self.tls
