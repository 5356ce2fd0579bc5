"""`limiquantix simulate`: what would happen, on a cluster out of a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from controlplane.cli.output import print_document
from controlplane.cli.session import ApiCommand, output_option, session_of

if TYPE_CHECKING:
    from controlplane.simulator.scenario import Scenario
    from controlplane.simulator.yaml_tree import FileUnusable


class _LocalCommand(click.Command):
    """A command that takes `--output` and calls nobody."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(output_option("How to print; json and yaml are one document with everything."))


@click.group()
def simulate() -> None:
    """Try out what would happen, without doing it.

    The cluster comes out of a file. The scheduler and the balancer are the real ones; time is virtual, and nothing is
    changed anywhere.

    \b
    Example:
      limiquantix simulate export > cluster.yaml
      limiquantix simulate run cluster.yaml --do 'drain host-2' --picture loads.svg
    """


@simulate.command(cls=_LocalCommand)
@click.argument("cluster", type=click.File("rb"), metavar="CLUSTER")
@click.argument("scenario", type=click.File("rb"), metavar="[SCENARIO]", required=False)
@click.option("--do", "events", multiple=True, metavar="EVENT", help="Something that happens. Repeatable, in order.")
@click.option("--picture", metavar="FILE", help="Write loads before and after as SVG; an existing file is replaced.")
@click.option("--all", "all_rows", is_flag=True, help="Print all rows of long tables.")
@click.pass_context
def run(
    context: click.Context,
    cluster: IO[bytes],
    scenario: IO[bytes] | None,
    events: tuple[str, ...],
    picture: str | None,
    all_rows: bool,
) -> None:
    """Let events happen to a cluster, and print the outcome.

    CLUSTER and SCENARIO are YAML files; - is standard input. Events of SCENARIO come first, then those of --do. Each
    begins when the one before it has ended. With no events the cluster is shown as it is.

    \b
    Events:
      place NAME memory=4GiB cpus=2 count=10 [all-or-nothing]
      drain NODE...     move all VMs elsewhere
      fail NODE...      restart their VMs elsewhere, by priority
      enable NODE...    let nodes take VMs again
      add-node NAME cpus=32 memory=128GiB
      balance [runs=5]  make the moves that the balancer plans
      wait 10m

    \b
    Exit status:
      0  every VM has a place
      1  some have none, or a file is wrong

    \b
    Example:
      limiquantix simulate run cluster.yaml --do 'fail host-1 host-2' --do 'wait 2h' --do balance
    """
    session = session_of(context)
    from controlplane.cli.simulate_views import document_of, print_result  # noqa: PLC0415 - start-up time
    from controlplane.simulator.cluster_file import read_cluster  # noqa: PLC0415
    from controlplane.simulator.run import EventUnusable  # noqa: PLC0415
    from controlplane.simulator.run import simulate as simulated  # noqa: PLC0415
    from controlplane.simulator.yaml_tree import FileUnusable  # noqa: PLC0415

    try:
        found = read_cluster(_read(cluster), _name_of(cluster))
        result = simulated(found, _scenario(scenario, events))
    except FileUnusable as error:
        raise _unusable(error) from error
    except EventUnusable as error:
        raise click.ClickException(str(error)) from error
    for warning in result.warnings:
        _warn(warning)
    if picture is not None:
        _draw(picture, result, Path(_name_of(cluster)).name)
    if session.prints_tables:
        print_result(result, all_rows=all_rows)
    else:
        print_document(document_of(result), session.output)
    if result.faults:
        sys.exit(1)


@simulate.command(cls=ApiCommand)
@click.pass_context
def export(context: click.Context) -> None:
    """Write the live cluster as a file that 'simulate run' reads.

    Nodes with what they have, are and have in use; VMs with their sizes and rules. First-boot data and passwords are
    left out. YAML, or JSON with -o json, which is read faster if there are thousands of nodes.

    \b
    Example:
      limiquantix simulate export > cluster.yaml
    """
    session = session_of(context)
    from controlplane.cli.lookup import connect, list_nodes, list_vms  # noqa: PLC0415 - start-up time
    from controlplane.cli.output import OutputFormat  # noqa: PLC0415
    from controlplane.cli.progress import waiting  # noqa: PLC0415
    from controlplane.simulator.export import export_cluster  # noqa: PLC0415

    with connect(context) as client, waiting("reading the cluster"):
        nodes, vms = list(list_nodes(client, {})), list(list_vms(client, {}))
    try:
        document = export_cluster(nodes, vms)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    print_document(document, OutputFormat.YAML if session.prints_tables else session.output)


def _name_of(file: IO[bytes]) -> str:
    name = str(getattr(file, "name", "-"))
    return "standard input" if name in ("-", "<stdin>") else name


def _read(file: IO[bytes]) -> bytes:
    from controlplane.simulator.yaml_tree import MAX_FILE_BYTES  # noqa: PLC0415 - start-up time

    try:
        return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise click.ClickException(f"cannot read {_name_of(file)}: {error.strerror}") from error


def _scenario(file: IO[bytes] | None, events: tuple[str, ...]) -> Scenario:
    from controlplane.simulator.scenario import Scenario, read_event, read_scenario  # noqa: PLC0415 - start-up time

    before = read_scenario(_read(file), _name_of(file)) if file is not None else Scenario()
    return Scenario(events=(*before.events, *(read_event(text) for text in events)))


def _unusable(error: FileUnusable) -> click.ClickException:
    from controlplane.cli.failures import Failure  # noqa: PLC0415 - start-up time

    if len(error.faults) == 1:
        return Failure(f"{error.name}: {error.faults[0]}")
    return Failure(f"{error.name} has {len(error.faults)} faults", explanations=error.faults)


def _warn(text: str) -> None:
    from controlplane.cli.failures import warn  # noqa: PLC0415 - start-up time

    warn(text)


def _draw(path: str, result: Any, title: str) -> None:
    from controlplane.simulator.picture import draw  # noqa: PLC0415 - start-up time

    try:
        Path(path).write_text(draw(result, title), encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror}") from error
