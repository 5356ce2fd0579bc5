"""Keep the mock's VMs in one JSON file, so that they outlive the process as real ones do.

The file is replaced atomically and never half written; a kill -9 at any moment leaves the old or the new one. Power
loss is no concern of a simulation, so nothing is flushed to the disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import os
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from hypervisor.errors import Unavailable
from hypervisor.hardware import Hardware
from hypervisor.types import NO_NOTES, CpuTopology, PowerState, VmConfig, VmNotes

FORMAT_VERSION = 1

RecordT = TypeVar("RecordT")


@dataclasses.dataclass(frozen=True, slots=True)
class MockSnapshot:
    """A saved state of a VM. `age_s` and the three after it are its guest's time and load, for one with memory."""

    snapshot_id: str
    name: str
    description: str
    parent_id: str
    created_at_s: float
    state: PowerState
    config: VmConfig
    disk_text: str
    has_memory: bool
    is_quiesced: bool
    frozen_filesystem_count: int
    memory_bytes: int
    age_s: float
    load: float
    load_since_s: float
    cpu_before_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class MockMachine:
    """The part of a running VM that its definition may have left behind."""

    cpu: CpuTopology
    memory_mib: int
    hardware: Hardware


@dataclasses.dataclass(frozen=True, slots=True)
class MockDeparture:
    """A migration under way, as the source began it; see `migration_model.Freight` for the second half."""

    journey: str
    peer_uri: str
    here_storage: Path
    here_logs: Path
    there_storage: Path
    there_logs: Path
    began_at_s: float
    state: PowerState
    """What the VM was when it began."""
    memory_bytes: int
    disk_bytes: int
    dirty_bytes_s: int
    bandwidth_bytes_s: int
    max_downtime_s: float
    is_live: bool
    auto_converge: bool
    post_copy: bool


@dataclasses.dataclass(slots=True)
class MockVm:
    """What the mock remembers of one VM; the only mutable record of the hypervisor layer, owned by `MockHypervisor`.

    `run_before_s` is guest time of this boot up to `running_since_s` (Unix time; None while the vCPUs stand still).
    `cpu_before_s` is CPU time used up to `load_since_s`, from where `load` (share of all vCPUs, 0 to 1) has held.
    `past_log` is the console output of earlier boots, `log_base` the count of bytes dropped before it.
    """

    config: VmConfig
    state: PowerState = PowerState.STOPPED
    is_managed: bool = True
    started_at_s: float | None = None
    running_since_s: float | None = None
    run_before_s: float = 0.0
    load: float = 0.1
    load_since_s: float = 0.0
    cpu_before_s: float = 0.0
    past_log: str = ""
    log_base: int = 0
    hotplugged_ids: tuple[str, ...] = ()
    """Disks that were attached since it was powered on."""
    disk_text: str = ""
    """Stands for everything that the guest wrote to its disks."""
    is_frozen: bool = False
    """Whether the guest's file systems are frozen for a snapshot."""
    snapshots: tuple[MockSnapshot, ...] = ()
    current_snapshot_id: str = ""
    running: MockMachine | None = None
    """What runs, where that is not what `config` says: changes that wait for the next start. None in any other case."""
    departure: MockDeparture | None = None
    """Its migration to another host."""
    is_arriving: bool = False
    """It is not here yet: another host sends it."""
    notes: VmNotes = NO_NOTES

    @property
    def live_config(self) -> VmConfig:
        """What runs, or would if it were started."""
        if self.running is None:
            return self.config
        machine = self.running
        return dataclasses.replace(
            self.config, cpu=machine.cpu, memory_mib=machine.memory_mib, hardware=machine.hardware
        )


def encode(record: object) -> Any:
    """Turn a record of dataclasses, enums, paths and tuples into JSON values."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {field.name: encode(getattr(record, field.name)) for field in dataclasses.fields(record)}
    if isinstance(record, enum.Enum):
        return record.value
    if isinstance(record, Path):
        return str(record)
    if isinstance(record, tuple):
        return [encode(item) for item in record]
    return record


def decode(kind: type[RecordT], value: Any) -> RecordT:
    """Build `kind` from what `encode` made of it.

    Raises:
        TypeError, KeyError, ValueError: the value does not have that shape.
    """
    return typing.cast(RecordT, _decode(kind, value))


def _decode(kind: Any, value: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _decode(next(part for part in typing.get_args(kind) if part is not types.NoneType), value)
    if origin is tuple:
        return tuple(_decode(typing.get_args(kind)[0], item) for item in value)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise TypeError(f"expected an object, found {type(value).__name__}")
        hints = typing.get_type_hints(kind)
        return kind(**{name: _decode(hints[name], item) for name, item in value.items()})  # type: ignore[operator]
    if isinstance(kind, type) and issubclass(kind, enum.Enum | Path):
        return kind(value)
    if not isinstance(value, kind) and not (kind is float and isinstance(value, int)):
        raise TypeError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value


def load(path: Path) -> dict[str, MockVm]:
    """Read every VM, by id; an absent file holds none. Blocks.

    Raises:
        Unavailable: the file cannot be read or is not one of ours; it is left as it is.
    """
    try:
        document = json.loads(path.read_bytes())
        if document["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version is {document['format_version']!r}, not {FORMAT_VERSION}")
        for value in document["vms"]:
            value.pop("console_port", None)  # what version 0.1 wrote
        vms = [decode(MockVm, value) for value in document["vms"]]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unavailable(
            f"the mock's state file {path} cannot be used ({error}); move it away to start empty"
        ) from error
    return {vm.config.vm_id: vm for vm in vms}


def save(path: Path, encoded_vms: typing.Iterable[str]) -> None:
    """Replace the file by these VMs, each already JSON text. Blocks.

    Raises:
        Unavailable: the file cannot be written; the old one stays.
    """
    partial = path.with_name(f".{path.name}.part")  # one name: what a killed process left is written over
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(partial, f'{{"format_version": {FORMAT_VERSION}, "vms": [\n' + ",\n".join(encoded_vms) + "\n]}\n")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise Unavailable(f"the mock's state file {path} cannot be written: {error.strerror}") from error


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read: configurations hold passwords of consoles."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)  # of one that a killed process of an older version left
        file.write(text)
