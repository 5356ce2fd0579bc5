"""What is known of the guests of this host, as reports tell it: the little that changes seldom."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypervisor.guests import GuestInterface, GuestSystem


@dataclass(frozen=True, slots=True)
class GuestFacts:
    """What a guest's agent told; empty of a guest whose agent is gone.

    `uptime_s` is as of `as_of_s` (Unix time), and neither makes two facts differ.
    """

    system: GuestSystem = field(default_factory=GuestSystem)
    ip_addresses: tuple[str, ...] = ()
    uptime_s: float = field(default=0.0, compare=False)
    as_of_s: float = field(default=0.0, compare=False)


def reachable_addresses(interfaces: Iterable[GuestInterface]) -> tuple[str, ...]:
    """Return the addresses that others may reach the guest at, IPv4 first; not those of its own machine or link."""
    found = [ipaddress.ip_address(address) for nic in interfaces for address in nic.ip_addresses]
    kept = [address for address in found if not (address.is_loopback or address.is_link_local)]
    return tuple(str(address) for address in sorted(dict.fromkeys(kept), key=lambda address: address.version))
