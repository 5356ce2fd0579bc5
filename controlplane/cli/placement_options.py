"""Options that say where a VM may run, shared by the commands that make, change and ask about VMs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import click

from controlplane.cli.api_client import ApiClient, Document
from controlplane.cli.lookup import complete_node, vm_id_of
from controlplane.cli.vm_spec_options import Label, enum_name

_MAX_WEIGHT = 100
_EFFECTS = ("no-schedule", "prefer-no-schedule", "no-execute")


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Other VMs, by labels or by the name or id of one, and how far away counts."""

    labels: dict[str, str] = field(default_factory=dict)
    vm: str = ""
    topology_key: str = ""
    weight: int = 0


class NeighboursType(click.ParamType[Neighbours]):
    """Which other VMs a rule is about: "app=web,tier=1" or a VM, then "on=rack" and "weight=50"."""

    name = "vms"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Neighbours:
        """Read for example "app=web,on=rack,weight=50"."""
        if isinstance(value, Neighbours):
            return value
        labels: dict[str, str] = {}
        vms: list[str] = []
        topology_key, weight = "", 0
        for part in value.split(","):
            key, equals, text = part.partition("=")
            if not key:
                self.fail(f"{value!r} has an empty part; write KEY=VALUE or a VM", param, ctx)
            elif not equals:
                vms.append(part)
            elif key == "on":
                topology_key = "" if text == "host" else text
            elif key == "weight":
                weight = read_weight(self, text, param, ctx)
            else:
                labels[key] = text
        if len(vms) + bool(labels) != 1:
            self.fail(f"{value!r} must name either labels or one VM", param, ctx)
        return Neighbours(labels, vms[0] if vms else "", topology_key, weight)


class TolerationType(click.ParamType[Document]):
    """A taint that the VM is put up with: "KEY", "KEY=VALUE", either with ":effect"."""

    name = "taint"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Document:
        """Read for example "gpu=true:no-schedule"."""
        if isinstance(value, dict):
            return value
        taint, colon, effect = value.rpartition(":") if ":" in value else (value, "", "")
        key, equals, text = taint.partition("=")
        if not key:
            self.fail(f"{value!r} is not KEY, KEY=VALUE or either with :EFFECT", param, ctx)
        toleration: Document = {"key": key}
        if equals:
            toleration["value"] = text
        if colon:
            if effect.lower() not in _EFFECTS:
                self.fail(f"{effect!r} is no effect of a taint; effects are {', '.join(_EFFECTS)}", param, ctx)
            toleration["effect"] = enum_name(effect)
        return toleration


class SpreadType(click.ParamType[Document]):
    """Over what VMs like this one are spread: a label of nodes or "host", then "max-skew=2" and "weight=50"."""

    name = "key"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Document:
        """Read for example "rack,weight=50"."""
        if isinstance(value, dict):
            return value
        topology_key, *rest = value.split(",")
        if not topology_key:
            self.fail(f"{value!r} must begin with a label of nodes, or host", param, ctx)
        rule: Document = {} if topology_key == "host" else {"topologyKey": topology_key}
        for part in rest:
            name, _, text = part.partition("=")
            if name == "weight":
                rule["weight"] = read_weight(self, text, param, ctx)
            elif name == "max-skew" and text.isdigit():
                rule["maxSkew"] = int(text)
            else:
                self.fail(f"{part!r} is neither max-skew=N nor weight=N", param, ctx)
        return rule


def read_weight(kind: click.ParamType[Any], text: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
    """Read how strongly something is preferred."""
    if not text.isdigit() or not 1 <= int(text) <= _MAX_WEIGHT:
        kind.fail(f"weight must be 1 to {_MAX_WEIGHT}, not {text!r}", param, ctx)
    return int(text)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the options say of where a VM may run; empty says nothing."""

    apart_from: tuple[Neighbours, ...] = ()
    together_with: tuple[Neighbours, ...] = ()
    tolerations: tuple[Document, ...] = ()
    spread_over: tuple[Document, ...] = ()
    node_labels: tuple[tuple[str, str], ...] = ()
    only_nodes: tuple[str, ...] = ()
    preferred_nodes: tuple[str, ...] = ()
    excluded_nodes: tuple[str, ...] = ()


def placement_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options, and hand it what they say as `rules`."""
    nodes = functools.partial(click.option, multiple=True, metavar="NODE", shell_complete=complete_node)

    @click.option(
        "--apart-from",
        type=NeighboursType(),
        multiple=True,
        metavar="KEY=VALUE|VM[,..]",
        help="Not on a host with VMs of this label, or with this VM. on=KEY makes nodes with the same label KEY one "
        "place, such as on=rack; weight=1 to 100 only prefers it. Repeatable.",
    )
    @click.option(
        "--together-with",
        type=NeighboursType(),
        multiple=True,
        metavar="KEY=VALUE|VM[,..]",
        help="On a host with such VMs; written like --apart-from. Repeatable.",
    )
    @click.option(
        "--tolerate",
        "tolerations",
        type=TolerationType(),
        multiple=True,
        metavar="KEY[=VALUE][:EFFECT]",
        help="May run on nodes with this taint. Repeatable.",
    )
    @click.option(
        "--spread-over",
        type=SpreadType(),
        multiple=True,
        metavar="KEY[,..]",
        help="Spread VMs with the same labels evenly over the values of this label of nodes, or over each host. "
        "max-skew=N allows more difference than 1; weight=1 to 100 only prefers it. Repeatable.",
    )
    @click.option(
        "--node-label", "node_labels", type=Label(), multiple=True, metavar="KEY=VALUE", help="Only on such nodes."
    )
    @nodes("--only-node", "only_nodes", help="Only on this node, or these. Repeatable.")
    @nodes("--prefer-node", "preferred_nodes", help="Rather on this node. Repeatable.")
    @nodes("--exclude-node", "excluded_nodes", help="Not on this node. Repeatable.")
    @functools.wraps(command)
    def with_rules(*args: Any, **kwargs: Any) -> None:
        said = {name: kwargs.pop(name) for name in Rules.__slots__}
        command(*args, rules=Rules(**said), **kwargs)

    return with_rules


def add_rules(client: ApiClient, spec: Document, rules: Rules, project: str) -> list[str]:
    """Put what the options say into a spec, over what it says of the same; returns the paths for an update's mask.

    Raises:
        NotFound: a VM that is named does not exist.
    """
    said = {
        "vmRules": [
            *_vm_rules(client, "APART", rules.apart_from, project),
            *_vm_rules(client, "TOGETHER", rules.together_with, project),
        ],
        "tolerations": list(rules.tolerations),
        "spreadRules": list(rules.spread_over),
        "requiredLabels": dict(rules.node_labels),
        "requiredNodes": list(rules.only_nodes),
        "preferredNodes": list(rules.preferred_nodes),
        "excludedNodes": list(rules.excluded_nodes),
    }
    given = {name: value for name, value in said.items() if value}
    if given:
        replaced = {*given, *map(_snake_case, given)}
        present = {key: value for key, value in spec.get("placement", {}).items() if key not in replaced}
        spec["placement"] = {**present, **given}
    return [f"spec.placement.{name}" for name in given]


def _vm_rules(client: ApiClient, kind: str, wishes: Iterable[Neighbours], project: str) -> Iterable[Document]:
    for wish in wishes:
        rule: Document = {"kind": kind}
        if wish.vm:
            rule["vmIds"] = [vm_id_of(client, wish.vm, project)]
        else:
            rule["labels"] = wish.labels
        if wish.topology_key:
            rule["topologyKey"] = wish.topology_key
        if wish.weight:
            rule["weight"] = wish.weight
        yield rule


def _snake_case(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
