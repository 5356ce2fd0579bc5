"""Moving VMs between hosts: the optional power to hand a VM, running or not, on to the hypervisor of another host.

Two hosts take part. The target `prepare`s and `admit`s, the source `send`s: from there the two hypervisors carry the VM
over between them, and go on doing so if whoever asked for it goes away. At no moment does the guest run at both: the
source stops it before the target may let it run. One that fails leaves the VM at the source as it was.

What is under way is the backend's to know. After a restart of this process, `progress` finds it, `cancel` ends it, and
its outcome is told by where the VM is.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from hypervisor.types import VmConfig

PORTS: Final = range(49152, 49216)
"""TCP ports on which a target takes in memory and disks. Source: qemu.conf, `migration_port_min` and `_max`."""


class Phase(enum.Enum):
    """How far a migration is."""

    PREPARING = "preparing"
    TRANSFERRING = "transferring"
    SWITCHING = "switching"
    """The guest stands still, or runs at the target and fetches the rest of its memory."""
    COMPLETE = "complete"
    FAILED = "failed"
    UNSETTLED = "unsettled"
    """It is over, and whether the guest was handed over is not known here, where it stands still."""

    @property
    def is_end(self) -> bool:
        """Whether nothing is under way any more."""
        return self in (Phase.COMPLETE, Phase.FAILED, Phase.UNSETTLED)


@dataclass(frozen=True, slots=True)
class Places:
    """Where a host keeps what VMs need; what lies below a path of one host lies below the same of another."""

    storage_root: Path
    console_log_dir: Path


@dataclass(frozen=True, slots=True)
class Route:
    """Between which places a VM moves, and at which URI the source reaches the target."""

    peer_uri: str
    here: Places
    there: Places

    def translate(self, path: Path) -> Path:
        """Say what a path of the source is at the target; one outside the places is the same."""
        for here, there in (
            (self.here.console_log_dir, self.there.console_log_dir),
            (self.here.storage_root, self.there.storage_root),
        ):
            if path.is_relative_to(here):
                return there / path.relative_to(here)
        return path


@dataclass(frozen=True, slots=True)
class MigrationOptions:
    """How a VM is sent.

    `is_live` lets the guest run while its memory is copied. `copies_disks` where the hosts share no storage: writable
    images are copied into those that are there. `max_downtime_ms` is what the guest may stand still, 0 leaves it to the
    backend; `bandwidth_bytes_s` 0 is no ceiling. `auto_converge` slows a guest down that writes faster than the network
    carries; `post_copy` lets it run at the target after one pass and fetch the rest.
    """

    route: Route
    is_live: bool = True
    copies_disks: bool = False
    max_downtime_ms: int = 0
    bandwidth_bytes_s: int = 0
    auto_converge: bool = False
    post_copy: bool = False
    compression: bool = False


@dataclass(frozen=True, slots=True)
class MigrationProgress:
    """How far a migration is, as the backend measures; sums are of memory and disks together.

    `downtime_ms` is known at the end and 0 until then. `dirty_bytes_s` is how fast the guest writes to its memory.
    """

    phase: Phase = Phase.PREPARING
    transferred_bytes: int = 0
    remaining_bytes: int = 0
    total_bytes: int = 0
    disk_transferred_bytes: int = 0
    memory_page_count: int = 0
    dirty_bytes_s: int = 0
    pass_count: int = 0
    downtime_ms: int = 0
    elapsed_ms: int = 0
    is_post_copy: bool = False
    error: str = ""

    @property
    def percent(self) -> int:
        """Share of what is to be carried that was: below 100 until it is complete."""
        if self.phase is Phase.COMPLETE:
            return 100
        if self.total_bytes <= 0:
            return 0
        return max(0, min(99, 100 * (self.total_bytes - self.remaining_bytes) // self.total_bytes))

    def ended(self, phase: Phase, error: str = "") -> MigrationProgress:
        """Say how it ended."""
        remaining_bytes = 0 if phase is Phase.COMPLETE else self.remaining_bytes
        return replace(self, phase=phase, error=error, remaining_bytes=remaining_bytes)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A VM that is about to come, as it will be defined at the target; one that is off needs no memory."""

    config: VmConfig
    is_off: bool = False


@dataclass(frozen=True, slots=True)
class MigrationLoad:
    """What a migration would have to carry; `dirty_bytes_s` None if it was not measured, 0 if the VM is off."""

    memory_bytes: int
    dirty_bytes_s: int | None
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class RevokedPeer:
    """A hypervisor that is believed no more, by the common name of its certificates, and since when."""

    common_name: str
    revoked_at: datetime


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What a hypervisor shows to those of other hosts, whom it believes, and whom not any more (CRL); all PEM.

    Attributes:
        revoked: whose connections are to be ended that were made with what the list names.
    """

    certificate_pem: bytes
    key_pem: bytes
    authority_pem: bytes
    revocation_list_pem: bytes
    revoked: Sequence[RevokedPeer] = ()

    def __repr__(self) -> str:
        return "PeerCertificate(...)"


class PeerCertificates(ABC):
    """How the hypervisor of this host gets to know those of others."""

    @abstractmethod
    async def install(self, certificate: PeerCertificate) -> None:
        """Have it used for connections that are made from now on; those that stand, and what moves by them, go on.

        But for those of revoked peers: what they have open ends, once for each time that one is revoked. Idempotent.

        Raises:
            HypervisorError: it is not used; the message says what to do.
        """


class Migration(ABC):
    """Moving VMs; see `Hypervisor` for the rules that hold for every method."""

    @property
    @abstractmethod
    def certificates(self) -> PeerCertificates | None:
        """None where hypervisors need none, or have what their operator brought along."""

    @property
    @abstractmethod
    def peer_uri(self) -> str:
        """The URI at which hypervisors of other hosts reach this one; "" if they do not."""

    @abstractmethod
    async def obstacle(self) -> str:
        """Say why this host can neither send nor take in VMs; "" if it can."""

    @abstractmethod
    async def prepare(self, arrival: Arrival) -> None:
        """Find out, on the target, whether it can take the VM in. Lets nothing in. Idempotent.

        Raises:
            MigrationRefused: the VM or its name is here; memory is short.
            HostCannot: the host lacks a processor feature, a network or a device that it needs.
        """

    @abstractmethod
    async def admit(self, vm_id: str) -> None:
        """Let this VM in, on the target, once. Where a backend cannot keep others out, their arrival is told."""

    @abstractmethod
    async def abandon(self, vm_id: str) -> None:
        """Shut the door again. Does nothing to the VM. Idempotent."""

    @abstractmethod
    async def check(self, vm_id: str, options: MigrationOptions) -> None:
        """Find out, on the source, whether the VM can be sent so.

        Raises:
            MigrationRefused: it cannot; the message says what stands in the way.
            WrongState: it is saved, or being sent.
        """

    @abstractmethod
    async def send(self, vm_id: str, options: MigrationOptions) -> MigrationProgress:
        """Send a VM and wait until that is over; returns what it took. May take hours.

        Cancelling the caller does not end it. A VM that is off arrives off; one that is paused, paused.

        Raises:
            MigrationRefused, WrongState: as `check`.
            MigrationFailed: it stays, as it was.
            Unavailable: what becomes of it is unknown; `progress` and its state tell.
        """

    @abstractmethod
    async def progress(self, vm_id: str) -> MigrationProgress | None:
        """Say how far it is, on the source; None if the VM is not being sent."""

    @abstractmethod
    async def cancel(self, vm_id: str) -> None:
        """Stop sending; returns once that was taken in. Fine if it is not being sent.

        Raises:
            MigrationFailed: it runs at the target already and fetches its memory from here: there is no way back.
        """

    @abstractmethod
    async def forecast(self, vm_id: str, sample_s: float) -> MigrationLoad:
        """Measure for that long what a migration would have to carry; whole seconds, at least one."""


@dataclass(frozen=True, slots=True)
class Ties:
    """What of a VM's making ties it to its host, as a backend finds it."""

    has_snapshots: bool = False
    has_host_devices: bool = False
    has_cached_disks: bool = False
    """The target could read what its own host cached of a writable disk before."""


def obstacles_of(ties: Ties, *, is_off: bool, copies_disks: bool) -> list[str]:
    """Say what keeps a VM where it is; pure, the same for every backend."""
    obstacles = (
        (ties.has_snapshots, "it has snapshots, which stay with this host; delete them first"),
        (ties.has_host_devices, "it has devices of this host passed through; detach them first"),
        (
            not is_off and not copies_disks and ties.has_cached_disks,
            "a disk is cached by its host (cache mode other than none), so that the target might read what is old; "
            "QEMU 4.0 and later are not in danger: bring the host up to date, set the disk's cache to none, or move "
            "the VM while it is off",
        ),
    )
    return [words for applies, words in obstacles if applies]


def ties_of(config: VmConfig, *, has_snapshots: bool) -> Ties:
    """Find the ties in a configuration."""
    return Ties(has_snapshots, config.hardware.passes_devices_through)
