"""`python -m benchmarks [lifecycle] [api] [memory]`: measure, and print the ratios."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import click
import uvloop

from benchmarks.api import ApiEffort, measure_api
from benchmarks.lifecycle import measure_lifecycle
from benchmarks.machine import observe_machine
from benchmarks.measurement import Section
from benchmarks.memory import measure_memory
from benchmarks.report import to_json, to_text
from controlplane.cli.dev.stack import ClusterFailed, HypervisorChoice

PARTS = ("lifecycle", "api", "memory")


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    lifecycle_pairs: int
    api: ApiEffort
    memory_vm_count: int
    memory_hypervisors: tuple[HypervisorChoice, ...]


FULL = Effort(
    lifecycle_pairs=24,
    api=ApiEffort(round_count=7, stretch_s=0.8),
    memory_vm_count=100,
    memory_hypervisors=(HypervisorChoice.MOCK, HypervisorChoice.LIBVIRT),
)
QUICK = Effort(
    lifecycle_pairs=5,
    api=ApiEffort(round_count=3, stretch_s=0.2),
    memory_vm_count=20,
    memory_hypervisors=(HypervisorChoice.MOCK,),
)


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--quick", is_flag=True, help="Fewer pairs and VMs: under 40 seconds, and less to rely on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def main(parts: Sequence[str], quick: bool, as_json: bool) -> None:
    """Measure the product against what it stands on, all of it or the PARTS named.

    Example: python -m benchmarks --quick lifecycle
    """
    machine = observe_machine()
    try:
        sections = uvloop.run(_measure(parts or PARTS, QUICK if quick else FULL))
    except ClusterFailed as error:
        raise click.ClickException(str(error)) from error
    click.echo(to_json(machine, sections) if as_json else to_text(machine, sections))


async def _measure(parts: Sequence[str], effort: Effort) -> list[Section]:
    measures: Mapping[str, Callable[[], Awaitable[Section]]] = {
        "lifecycle": lambda: measure_lifecycle(effort.lifecycle_pairs),
        "api": lambda: measure_api(effort.api),
        "memory": lambda: measure_memory(effort.memory_vm_count, effort.memory_hypervisors),
    }
    return [await measures[part]() for part in PARTS if part in parts]


if __name__ == "__main__":
    main()
