"""Options for a VM's machine beyond its size, shared by the commands that make and change VMs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from controlplane.cli.api_client import Document
from controlplane.cli.vm_spec_options import MemorySize, enum_name

FAMILIES = (
    "rhel",
    "debian",
    "suse",
    "arch",
    "fedora",
    "generic-linux",
    "windows-server",
    "windows-desktop",
    "windows-legacy",
    "freebsd",
    "openbsd",
    "netbsd",
    "macos",
    "solaris",
    "other",
)
_WATCHDOG_ACTIONS = ("reset", "shutdown", "poweroff", "pause", "none")
_TPM_VERSIONS = {"1.2": "TPM_1_2", "2.0": "TPM_2_0"}


def hardware_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options, and hand it what they say as `hardware`: paths in a spec with their values."""

    @click.option("--max-cpus", type=click.IntRange(min=1), metavar="N", help="vCPUs it may grow to while it runs.")
    @click.option("--max-memory", type=MemorySize(), metavar="SIZE", help="Memory it may grow to while it runs.")
    @click.option("--balloon/--no-balloon", default=None, help="Whether a running guest may be asked for memory back.")
    @click.option(
        "--guest-os",
        type=click.Choice(FAMILIES, case_sensitive=False),
        help="What runs inside; chooses clock, timers and enlightenments.",
    )
    @click.option("--tpm", type=click.Choice(list(_TPM_VERSIONS)), help="Give it a TPM.")
    @click.option(
        "--watchdog",
        type=click.Choice(_WATCHDOG_ACTIONS, case_sensitive=False),
        help="Give it a watchdog that does this when the guest hangs.",
    )
    @click.option(
        "--display", type=click.Choice(["vnc", "spice", "none"], case_sensitive=False), help="Its graphical console."
    )
    @functools.wraps(command)
    def with_hardware(
        *args: Any,
        max_cpus: int | None,
        max_memory: int | None,
        balloon: bool | None,
        guest_os: str | None,
        tpm: str | None,
        watchdog: str | None,
        display: str | None,
        **kwargs: Any,
    ) -> None:
        said = {
            ("cpu", "maxVcpus"): max_cpus,
            ("memory", "maxMemoryMib"): max_memory,
            ("memory", "ballooningEnabled"): balloon,
            ("guestOs", "family"): f"GUEST_OS_FAMILY_{enum_name(guest_os)}" if guest_os else None,
            ("tpm", "enabled"): True if tpm else None,
            ("tpm", "version"): _TPM_VERSIONS[tpm] if tpm else None,
            ("watchdog", "enabled"): True if watchdog else None,
            ("watchdog", "action"): enum_name(watchdog) if watchdog else None,
            ("display", "type"): enum_name(display) if display else None,
        }
        command(*args, hardware={path: value for path, value in said.items() if value is not None}, **kwargs)

    return with_hardware


Hardware = dict[tuple[str, str], Any]


def add_hardware(spec: Document, hardware: Hardware) -> list[str]:
    """Put what the options say into a spec, over what it says of the same; returns the paths for an update's mask."""
    for (part, name), value in hardware.items():
        present: Document = spec.get(part) or spec.pop(_snake_case(part), None) or {}
        spec[part] = {key: kept for key, kept in present.items() if key != _snake_case(name)} | {name: value}
    return [f"spec.{part}.{name}" for part, name in hardware]


def _snake_case(field: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in field)
