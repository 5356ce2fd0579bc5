"""Options that say what becomes of a VM when it or its host fails, shared by the commands that make and change VMs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from controlplane.cli.api_client import ApiClient, Document
from controlplane.cli.lookup import complete_vm, vm_id_of

_MAX_DELAY_S = 86_400
GUEST_ACTIONS = ("none", "alert", "reset")


@dataclass(frozen=True, slots=True)
class Restarting:
    """What the options say; None and empty say nothing."""

    ha: bool | None = None
    ha_priority: int | None = None
    ha_delay_s: int | None = None
    ha_restarts: int | None = None
    ha_relocations: int | None = None
    ha_starts_after: tuple[str, ...] = ()
    ha_guest_action: str | None = None
    ha_guest_timeout_s: int | None = None


def ha_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options, and hand it what they say as `restarting`."""

    @click.option(
        "--ha/--no-ha", "ha", default=None, help="Start it again if it dies, and on another node if its host dies."
    )
    @click.option(
        "--ha-priority", type=click.IntRange(-(2**31), 2**31 - 1), metavar="N", help="Higher is restarted earlier."
    )
    @click.option(
        "--ha-delay", "ha_delay_s", type=click.IntRange(0, _MAX_DELAY_S), metavar="SECONDS", help="Before each restart."
    )
    @click.option(
        "--ha-restarts", type=click.IntRange(0, 1000), metavar="N", help="Restarts in a row at most; 0 sets no limit."
    )
    @click.option(
        "--ha-relocations",
        type=click.IntRange(0, 100),
        metavar="N",
        help="Other nodes that are tried if it does not start; 0 means one.",
    )
    @click.option(
        "--ha-starts-after",
        multiple=True,
        metavar="VM",
        shell_complete=complete_vm,
        help="After a failure of a host, only once this VM runs. Repeatable.",
    )
    @click.option(
        "--ha-guest-action",
        type=click.Choice(GUEST_ACTIONS, case_sensitive=False),
        help="What to do when the agent inside falls silent.",
    )
    @click.option(
        "--ha-guest-timeout",
        "ha_guest_timeout_s",
        type=click.IntRange(0, _MAX_DELAY_S),
        metavar="SECONDS",
        help="How long the agent may be silent; 0 means 120.",
    )
    @functools.wraps(command)
    def with_restarting(*args: Any, **kwargs: Any) -> None:
        said = {name: kwargs.pop(name) for name in Restarting.__slots__}
        command(*args, restarting=Restarting(**said), **kwargs)

    return with_restarting


def add_restarting(client: ApiClient, spec: Document, restarting: Restarting, project: str) -> list[str]:
    """Put what the options say into a spec, over what it says of the same; returns the paths for an update's mask.

    Raises:
        NotFound: a VM that is named does not exist.
    """
    action = restarting.ha_guest_action
    unspecified = {"none": "unspecified"}
    said = {
        "autoRestart": restarting.ha,
        "priority": restarting.ha_priority,
        "restartDelaySec": restarting.ha_delay_s,
        "maxRestarts": restarting.ha_restarts,
        "maxRelocations": restarting.ha_relocations,
        "startsAfter": [vm_id_of(client, vm, project) for vm in restarting.ha_starts_after] or None,
        "guestAction": f"GUEST_ACTION_{unspecified.get(action, action).upper()}" if action else None,
        "guestTimeoutSec": restarting.ha_guest_timeout_s,
    }
    given = {name: value for name, value in said.items() if value is not None}
    if given:
        present = spec.pop("ha_policy", None) or spec.get("haPolicy") or {}
        replaced = {*given, *map(_snake_case, given)}
        spec["haPolicy"] = {**{key: value for key, value in present.items() if key not in replaced}, **given}
    return [f"spec.haPolicy.{name}" for name in given]


def _snake_case(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
