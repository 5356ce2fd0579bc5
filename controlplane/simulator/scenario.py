"""What shall happen to a cluster, one event after the other: from a file, or from words on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from controlplane.simulator.cluster_file import NodeEntry, VmEntry, checked
from controlplane.simulator.values import Entry, Name, Seconds
from controlplane.simulator.yaml_tree import FileUnusable, Tree, read_tree

MAX_EVENT_COUNT: Final = 1_000
MAX_COUNT: Final = 100_000
FIT: Final = "as-many-as-fit"
ALL: Final = "all-or-nothing"
Names = Annotated[tuple[Name, ...], Field(min_length=1)]


class NewVms(VmEntry):
    """VMs to be placed: `count` of them, named name-1, name-2 and so on if there are several."""

    count: Annotated[int, Field(strict=True, ge=1, le=MAX_COUNT)] = 1


class Place(Entry):
    """Place VMs, in their order."""

    vms: Annotated[tuple[NewVms, ...], Field(min_length=1)]
    mode: Literal["as-many-as-fit", "all-or-nothing"] = FIT


class Balance(Entry):
    """Plan moves as the balancer does, and make them; `runs` plans at most, until one has none."""

    runs: Annotated[int, Field(strict=True, ge=1, le=100)] = 1


class Event(Entry):
    """One thing that happens; exactly one field is set."""

    place: Place | None = None
    drain: Names | None = None
    fail: Names | None = None
    enable: Names | None = None
    balance: Balance | None = None
    add_nodes: Annotated[tuple[NodeEntry, ...], Field(min_length=1)] | None = None
    wait: Seconds | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_short_forms(cls, value: Any) -> Any:
        """Take one name for a list of one, and `balance:` without anything for the usual balancing."""
        if not isinstance(value, Mapping):
            return value
        full = dict(value)
        for name in ("drain", "fail", "enable"):
            if isinstance(full.get(name), str):
                full[name] = [full[name]]
        if "balance" in full and full["balance"] is None:
            full["balance"] = {}
        return full

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            names = ", ".join(sorted(type(self).model_fields))
            raise ValueError(f"an event is exactly one of {names}")
        return self


class Scenario(Entry):
    """Events, in their order."""

    version: Literal[1] = 1
    events: Annotated[tuple[Event, ...], Field(max_length=MAX_EVENT_COUNT)] = ()


_SCENARIO: TypeAdapter[Scenario] = TypeAdapter(Scenario)
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def read_scenario(data: bytes, name: str = "scenario file") -> Scenario:
    """Read a scenario file.

    Raises:
        FileUnusable: it is none; every fault has its line and the path of its field.
    """
    return checked(_SCENARIO, read_tree(data, name))


def read_event(text: str) -> Event:
    """Read an event as it is written on the command line.

    That is "place NAME memory=4GiB [cpus=2] [count=10] [all-or-nothing]", "drain NODE..", "fail NODE..",
    "enable NODE..", "balance [runs=2]", "add-node NAME cpus=32 memory=128GiB" or "wait 10m".

    Raises:
        FileUnusable: it is none of these.
    """
    verb, *words = text.split()[:MAX_COUNT] or [""]
    options = dict(word.split("=", 1) for word in words if "=" in word)
    names = [word for word in words if "=" not in word]
    document = _document_of(verb, names, {key: _value(value) for key, value in options.items()})
    if document is None:
        known = "place, drain, fail, enable, balance, add-node or wait"
        raise FileUnusable(repr(text)[:120], f"does not begin with {known}")
    try:
        return checked(_EVENT, Tree.of(repr(text)[:120], document))
    except FileUnusable as error:
        faults = (fault.removeprefix("line 1: ") for fault in error.faults)
        raise FileUnusable(error.name, *faults) from error


def _document_of(verb: str, names: Sequence[str], options: Mapping[str, Any]) -> Mapping[str, Any] | None:
    match verb:
        case "place":
            mode = ALL if ALL in names else FIT
            named = [name for name in names if name not in (ALL, FIT)]
            return {"place": {"vms": [{"name": name, **options} for name in named], "mode": mode}}
        case "drain" | "fail" | "enable":
            return {verb: [*names, *(f"{key}={value}" for key, value in options.items())]}
        case "balance":
            return {"balance": {**options, **dict.fromkeys(names)}}
        case "add-node":
            return {"add_nodes": [{"name": name, **options} for name in names]}
        case "wait":
            return {"wait": " ".join(names)}
    return None


def _value(text: str) -> str | int:
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text, re.ASCII) else text
