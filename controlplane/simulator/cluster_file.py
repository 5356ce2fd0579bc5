"""The file that describes a cluster: its nodes, the VMs on them, and how it is run.

A few fields say what matters of a node or a VM. What the scheduler reads beyond, such as devices, networks or NUMA
nodes, stands in `spec`, the API's own document, which an export fills.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from controlplane.scheduler.scores import Strategy
from controlplane.simulator.values import (
    Bytes,
    Count,
    Document,
    Entry,
    LabelKey,
    Labels,
    LabelValue,
    Name,
    Number,
    Percent,
    Seconds,
    read_message,
)
from controlplane.simulator.yaml_tree import FileUnusable, Tree, read_tree
from limiquantix.compute.v1.node_pb2 import NodeSpec
from limiquantix.compute.v1.vm_pb2 import PlacementPolicy, VmSpec

MAX_NODE_COUNT = 20_000
MAX_VM_COUNT = 500_000
_MAX_FAULTS = 20
_T = TypeVar("_T")

Phase = Literal["READY", "NOT_READY", "MAINTENANCE", "DRAINING", "OFFLINE", "PENDING", "UNKNOWN"]
State = Literal["RUNNING", "STOPPED", "PAUSED", "SUSPENDED", "CRASHED"]


class Taint(Entry):
    """A taint of a node."""

    key: LabelKey
    value: LabelValue = ""
    effect: Literal["NO_SCHEDULE", "PREFER_NO_SCHEDULE", "NO_EXECUTE"] = "NO_SCHEDULE"


class Usage(Entry):
    """Measured load: percent of all the node's threads or the VM's vCPUs, and memory."""

    cpu_percent: Percent = 0.0
    memory: Bytes = 0


class Capacity(Entry):
    """What VMs may claim of a node."""

    vcpus: Count
    memory: Bytes


class NodeEntry(Entry):
    """One node. VMs may claim `capacity`, or what follows from the host's size and the cluster's settings."""

    name: Name
    id: Annotated[str, Field(max_length=253)] = ""
    cpus: Annotated[int, Field(strict=True, ge=1, le=100_000)]
    memory: Bytes
    capacity: Capacity | None = None
    phase: Phase = "READY"
    schedulable: bool = True
    labels: Labels = Field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    storage_pools: tuple[Name, ...] = ()
    used: Usage | None = None
    spec: Document = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its id, or its name if it has none."""
        return self.id or self.name

    @field_validator("spec")
    @classmethod
    def _is_node_spec(cls, value: Document) -> Document:
        read_message(value, NodeSpec())
        return value


class VmEntry(Entry):
    """One VM. `cpus` and `memory` are what it claims; `node` is a name or id, absent for one that is on none."""

    name: Name
    id: Annotated[str, Field(max_length=253)] = ""
    project: Annotated[str, Field(max_length=253)] = ""
    node: Annotated[str, Field(max_length=253)] = ""
    cpus: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 1
    memory: Bytes
    state: State = "RUNNING"
    labels: Labels = Field(default_factory=dict)
    priority: Annotated[int, Field(strict=True, ge=-(2**31), lt=2**31)] | None = None
    auto_restart: bool | None = None
    used: Usage | None = None
    writes_per_s: Bytes = 0
    placement: Document = Field(default_factory=dict)
    spec: Document = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its id, or its name if it has none."""
        return self.id or self.name

    @field_validator("placement")
    @classmethod
    def _is_policy(cls, value: Document) -> Document:
        read_message(value, PlacementPolicy())
        return value

    @field_validator("spec")
    @classmethod
    def _is_vm_spec(cls, value: Document) -> Document:
        read_message(value, VmSpec())
        return value


class Times(Entry):
    """How long things take; migrations by the same forecast that a live cluster gives."""

    bandwidth_mbps: Annotated[int, Field(strict=True, ge=1, le=10_000_000)] = 1000
    migrations_per_node: Annotated[int, Field(strict=True, ge=1, le=1000)] = 2
    migrations_per_cluster: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 8
    starts_per_node: Annotated[int, Field(strict=True, ge=1, le=1000)] = 4
    failure_noticed: Seconds = 30
    create: Seconds = 5
    start: Seconds = 30


class Balancing(Entry):
    """What is worth a move, as the control plane's `drs` settings have it."""

    cpu_threshold_percent: Percent = 80.0
    memory_threshold_percent: Percent = 85.0
    min_gain_points: Annotated[float, Field(gt=0, le=100)] = 1.0
    min_difference_points: Percent = 5.0
    hysteresis_points: Percent = 5.0
    max_moves: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 20
    max_concurrent_moves: Annotated[int, Field(strict=True, ge=1, le=1000)] = 2
    hold: Seconds = 3600
    node_cool_down: Seconds = 300
    cluster_cool_down: Seconds = 0
    headroom_failures: Annotated[int, Field(strict=True, ge=0, le=8)] = 1


class Settings(Entry):
    """How the cluster is run; the defaults are those of the control plane."""

    strategy: Strategy = Strategy.SPREAD
    cpu_overcommit: Annotated[Number, Field(ge=0.01, le=1000)] = 2.0
    memory_overcommit: Annotated[Number, Field(ge=0.01, le=1000)] = 1.5
    reserved_cpus: Count = 1
    reserved_memory: Bytes = 2**30
    times: Times = Times()
    balancing: Balancing = Balancing()


class ClusterFile(Entry):
    """A cluster."""

    version: Literal[1] = 1
    settings: Settings = Settings()
    nodes: Annotated[tuple[NodeEntry, ...], Field(max_length=MAX_NODE_COUNT)] = ()
    vms: Annotated[tuple[VmEntry, ...], Field(max_length=MAX_VM_COUNT)] = ()

    @model_validator(mode="after")
    def _names_are_clear(self) -> Self:
        """Check that names are unique and that every VM is on a node that exists."""
        faults = [*_name_faults(self.nodes, self.vms)]
        if faults:
            raise ValueError("\n".join(faults[:_MAX_FAULTS]))
        return self


def _name_faults(nodes: tuple[NodeEntry, ...], vms: tuple[VmEntry, ...]) -> Iterator[str]:
    """Say which names are not clear, each with the place in front, in the form `place: fault`."""
    yield from _repeated("nodes", "name", ((node.name, node.name) for node in nodes))
    yield from _repeated("nodes", "id", ((node.id, node.id) for node in nodes))
    yield from _repeated("vms", "name", (((vm.project, vm.name), vm.name) for vm in vms))
    yield from _repeated("vms", "id", ((vm.id, vm.id) for vm in vms))
    known = {name for node in nodes for name in (node.name, node.key)}
    for index, vm in enumerate(vms):
        if vm.node and vm.node not in known:
            yield f"vms.{index}.node: there is no node {vm.node!r}"


def _repeated(kind: str, field: str, names: Iterable[tuple[Any, str]]) -> Iterator[str]:
    seen: set[Any] = set()
    for index, (key, name) in enumerate(names):
        if name and key in seen:
            yield f"{kind}.{index}.{field}: {name!r} is the {field} of another one too"
        seen.add(key)


_CLUSTER: TypeAdapter[ClusterFile] = TypeAdapter(ClusterFile)


def read_cluster(data: bytes, name: str = "cluster file") -> ClusterFile:
    """Read a cluster file.

    Raises:
        FileUnusable: it is none; every fault has its line and the path of its field.
    """
    return checked(_CLUSTER, read_tree(data, name))


def checked(adapter: TypeAdapter[_T], tree: Tree) -> _T:
    """Check a document against a model.

    Raises:
        FileUnusable: it does not fit; every fault has its line and the path of its field.
    """
    try:
        return adapter.validate_python(tree.value)
    except ValidationError as error:
        faults = [
            fault
            for details in error.errors(include_url=False)
            for fault in _faults(details["loc"], details["type"], details["msg"], tree)
        ]
        shown = list(dict.fromkeys(faults))
        more = [f"and {len(shown) - _MAX_FAULTS} more"] if len(shown) > _MAX_FAULTS else []
        raise FileUnusable(tree.name, *shown[:_MAX_FAULTS], *more) from error


def _faults(where_found: tuple[int | str, ...], kind: str, text: str, tree: Tree) -> Iterator[str]:
    """Write one finding of pydantic, or the several of a check of our own, as a person would."""
    path = list(where_found)
    message = text.removeprefix("Value error, ")
    if kind == "extra_forbidden":
        message = "is not known; look for a typing error"
    elif kind == "missing":
        message = "is missing"
    elif kind == "string_type":
        message = "is not a text; quote it"
    elif kind == "value_error" and not path:
        for line in message.splitlines():
            where, _, fault = line.partition(": ")
            inner: list[str | int] = [int(step) if step.isdecimal() else step for step in where.split(".")]
            yield _fault(tree, inner, fault)
        return
    yield _fault(tree, path, message)


def _fault(tree: Tree, path: list[str | int], message: str) -> str:
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step:.80}" for step in path).removeprefix(".")
    field = f"{where}: " if where else ""
    return f"line {tree.line_of(path)}: {field}{message}"


def to_document(cluster: ClusterFile) -> dict[str, Any]:
    """Write a cluster as the document that `read_cluster` reads; what is at its default is left out."""
    document = cluster.model_dump(mode="json", exclude_defaults=True)
    return _with_units({"version": 1, **document})


_BYTE_FIELDS = frozenset({"memory", "reserved_memory", "writes_per_s"})
_SECOND_FIELDS = frozenset({"failure_noticed", "create", "start", "hold", "node_cool_down", "cluster_cool_down"})
_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))


def _with_units(document: dict[str, Any]) -> dict[str, Any]:
    return {key: _in_words(key, value) for key, value in document.items()}


def _in_words(key: str, value: Any) -> Any:
    if key in ("spec", "placement", "labels"):
        return value
    if key in _BYTE_FIELDS and isinstance(value, int):
        unit, factor = next((unit, factor) for unit, factor in _UNITS if value % factor == 0)
        return f"{value // factor}{unit}"
    if key in _SECOND_FIELDS and isinstance(value, int):
        return f"{value}s"
    if isinstance(value, list):
        return [_in_words("", each) for each in value]
    return _with_units(value) if isinstance(value, dict) else value
