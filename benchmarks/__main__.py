"""`python -m benchmarks [part ...]`: measure, and print the ratios."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import click
import uvloop

from benchmarks.api import LARGE, SMALL, ApiEffort, measure_api
from benchmarks.claims import ClaimEffort, measure_claims
from benchmarks.closed import ClosedEffort, measure_closed
from benchmarks.creates import CreateEffort, measure_creates
from benchmarks.decisions import DecisionEffort, measure_decisions
from benchmarks.failover import FailoverEffort, measure_failover
from benchmarks.heartbeats import HeartbeatEffort, measure_heartbeats
from benchmarks.lifecycle import measure_lifecycle
from benchmarks.machine import observe_machine
from benchmarks.measurement import Section
from benchmarks.memory import measure_memory
from benchmarks.metrics import MetricsEffort, measure_metrics
from benchmarks.migrations import measure_migrations
from benchmarks.operations import measure_operations
from benchmarks.packing import PackingEffort, measure_packing
from benchmarks.report import to_json, to_text
from benchmarks.watching import WatchEffort, measure_watching
from controlplane.cli.dev.stack import ClusterFailed, HypervisorChoice
from telemetry.logs import LogFormat, configure_logging

PARTS = (
    *("lifecycle", "operations", "api", "scale", "closed", "claims", "creates", "watches", "metrics", "memory"),
    *("migrations", "decisions", "packing", "heartbeats", "failover"),
)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    lifecycle_pairs: int
    operation_rounds: int
    api: ApiEffort
    scale: ApiEffort
    closed: ClosedEffort
    claims: ClaimEffort
    creates: CreateEffort
    watches: WatchEffort
    metrics: MetricsEffort
    migration_pairs: int
    memory_vm_count: int
    memory_hypervisors: tuple[HypervisorChoice, ...]
    decisions: DecisionEffort
    packing: PackingEffort
    heartbeats: HeartbeatEffort
    failover: FailoverEffort


FULL = Effort(
    lifecycle_pairs=24,
    operation_rounds=11,
    api=ApiEffort(round_count=7, stretch_s=0.8),
    scale=ApiEffort(round_count=5, stretch_s=0.8),
    closed=ClosedEffort(round_count=75, stretch_s=0.1),
    claims=ClaimEffort(round_count=5, stretch_s=1),
    creates=CreateEffort(round_count=5, stretch_s=1.0),
    watches=WatchEffort(round_count=5),
    metrics=MetricsEffort(round_count=20, mock_vm_count=100, real_vm_count=10, idle_vm_count=20, idle_s=30),
    migration_pairs=5,
    memory_vm_count=100,
    memory_hypervisors=(HypervisorChoice.MOCK, HypervisorChoice.LIBVIRT),
    decisions=DecisionEffort(round_count=5, decision_count=2000),
    packing=PackingEffort(seed_count=5, node_count=24),
    heartbeats=HeartbeatEffort(node_count=2000),
    failover=FailoverEffort(run_count=20),
)
QUICK = Effort(
    lifecycle_pairs=5,
    operation_rounds=2,
    api=ApiEffort(round_count=3, stretch_s=0.2),
    scale=ApiEffort(round_count=3, stretch_s=0.2),
    closed=ClosedEffort(round_count=15, stretch_s=0.1),
    claims=ClaimEffort(round_count=1, stretch_s=1),
    creates=CreateEffort(round_count=1, stretch_s=0.5),
    watches=WatchEffort(round_count=1),
    metrics=MetricsEffort(round_count=5, mock_vm_count=100, real_vm_count=5, idle_vm_count=10, idle_s=5),
    migration_pairs=2,
    memory_vm_count=20,
    memory_hypervisors=(HypervisorChoice.MOCK,),
    decisions=DecisionEffort(round_count=2, decision_count=1000),
    packing=PackingEffort(seed_count=2, node_count=10),
    heartbeats=HeartbeatEffort(node_count=200),
    failover=FailoverEffort(run_count=4),
)


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--quick", is_flag=True, help="Fewer pairs and VMs: a bit over a minute, and less to rely on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--migrations", "migration_pairs", type=click.IntRange(1), help="Pairs of live migrations. Default: 5.")
@click.option("--nodes", "node_count", type=click.IntRange(1), help="Nodes that send heartbeats. Default: 2000.")
@click.option("--runs", "run_count", type=click.IntRange(1), help="Deaths of a host, with each proof. Default: 20.")
def main(
    parts: Sequence[str],
    quick: bool,
    as_json: bool,
    migration_pairs: int | None,
    node_count: int | None,
    run_count: int | None,
) -> None:
    """Measure the product against what it stands on, all of it or the PARTS named.

    Example: python -m benchmarks --quick lifecycle
    """
    configure_logging("warning", LogFormat.CONSOLE)
    machine = observe_machine()
    try:
        effort = QUICK if quick else FULL
        effort = replace(effort, migration_pairs=migration_pairs or effort.migration_pairs)
        if node_count:
            effort = replace(effort, heartbeats=HeartbeatEffort(node_count))
        if run_count:
            effort = replace(effort, failover=FailoverEffort(run_count))
        sections = uvloop.run(_measure(parts or PARTS, effort))
    except ClusterFailed as error:
        raise click.ClickException(str(error)) from error
    except asyncio.CancelledError:
        raise click.ClickException("ended by SIGTERM before everything was measured") from None
    click.echo(to_json(machine, sections) if as_json else to_text(machine, sections))


async def _measure(parts: Sequence[str], effort: Effort) -> list[Section]:
    measuring = asyncio.current_task()
    assert measuring is not None
    # As Ctrl-C: what was started is ended, and its files are removed.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, measuring.cancel)
    measures: Mapping[str, Callable[[], Awaitable[Section]]] = {
        "lifecycle": lambda: measure_lifecycle(effort.lifecycle_pairs),
        "operations": lambda: measure_operations(effort.operation_rounds),
        "api": lambda: measure_api(effort.api, SMALL),
        "scale": lambda: measure_api(effort.scale, LARGE),
        "closed": lambda: measure_closed(effort.closed),
        "claims": lambda: measure_claims(effort.claims),
        "creates": lambda: measure_creates(effort.creates),
        "watches": lambda: measure_watching(effort.watches),
        "metrics": lambda: measure_metrics(effort.metrics),
        "migrations": lambda: measure_migrations(effort.migration_pairs),
        "memory": lambda: measure_memory(effort.memory_vm_count, effort.memory_hypervisors),
        "decisions": lambda: measure_decisions(effort.decisions),
        "packing": lambda: measure_packing(effort.packing),
        "heartbeats": lambda: measure_heartbeats(effort.heartbeats),
        "failover": lambda: measure_failover(effort.failover),
    }
    return [await measures[part]() for part in PARTS if part in parts]


if __name__ == "__main__":
    main()
