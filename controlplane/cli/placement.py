"""`limiquantix vm explain` and `limiquantix capacity`: what the scheduler thinks, without changing anything."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import IO, Any

import click

from controlplane.cli.api_client import PLACEMENT_SERVICE, ApiClient, Document
from controlplane.cli.lookup import complete_vm, connect, vm_id_of
from controlplane.cli.output import Column, print_document, print_table
from controlplane.cli.placement_options import Rules, add_rules, placement_options
from controlplane.cli.progress import waiting
from controlplane.cli.session import ApiCommand, session_of
from controlplane.cli.terminal_text import one_line
from controlplane.cli.vm_spec_options import Disk, Label, MemorySize, Nic, VmOptions, create_request, read_document

_NODE_COLUMNS = (
    Column("NODE"),
    Column("FITS", styles={"yes": "green", "no": "red"}),
    Column("POINTS", is_number=True),
    Column("WHY"),
)
_CAPACITY_COLUMNS = (Column("NODE"), Column("FIT", is_number=True), Column("WHY NO MORE"))
_MAX_FAILED_NODES = 3


def candidate_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that describe a VM which does not exist, and hand it what they say as `options`."""

    @click.option("--cpus", type=click.IntRange(min=1), metavar="N", help="Number of vCPUs.")
    @click.option("--memory", "memory_mib", type=MemorySize(), metavar="SIZE", help="Memory, such as 512MiB or 2GiB.")
    @click.option("--disk", "disks", type=Disk(), multiple=True, metavar="SIZE[,..]", help="As of 'vm create'.")
    @click.option("--nic", "nics", type=Nic(), multiple=True, metavar="bridge=NAME[,..]", help="As of 'vm create'.")
    @click.option("--label", "labels", type=Label(), multiple=True, metavar="KEY=VALUE", help="Label. Repeatable.")
    @click.option("--project", "project_id", metavar="ID", help="Project that would own the VM.")
    @placement_options
    @click.option(
        "--from-file",
        "file",
        type=click.File("rb"),
        metavar="FILE",
        help="YAML or JSON as 'vm create' takes it; - is standard input. Options win over it.",
    )
    @functools.wraps(command)
    def with_options(
        *args: Any,
        cpus: int | None,
        memory_mib: int | None,
        disks: tuple[Document, ...],
        nics: tuple[Document, ...],
        labels: tuple[tuple[str, str], ...],
        project_id: str | None,
        **kwargs: Any,
    ) -> None:
        options = VmOptions(
            project_id=project_id, cpus=cpus, memory_mib=memory_mib, disks=disks, nics=nics, labels=labels
        )
        command(*args, options=options, **kwargs)

    return with_options


def _candidate(client: ApiClient, options: VmOptions, file: IO[bytes] | None, rules: Rules) -> Document:
    """Build a PlacementCandidate."""
    document = read_document(file) if file is not None else {}
    name = str(document.get("name") or "candidate")
    request = create_request(replace(options, name=name), document)
    add_rules(client, request["spec"], rules, options.project_id or "")
    names = (("name", "name"), ("spec", "spec"), ("labels", "labels"), ("projectId", "project_id"))
    found = {name: request.get(name, request.get(other)) for name, other in names}
    return {name: value for name, value in found.items() if value is not None}


@click.command(cls=ApiCommand)
@click.argument("vm", metavar="[VM]", required=False, shell_complete=complete_vm)
@candidate_options
@click.pass_context
def explain(context: click.Context, vm: str | None, options: VmOptions, file: IO[bytes] | None, rules: Rules) -> None:
    """Say where a VM would be placed, and why.

    Of a VM that exists: as if it were placed anew. Without a name: of one that the options describe. Every node is
    listed with its points or with what keeps the VM away. Nothing is changed or claimed.

    \b
    Example:
      limiquantix vm explain web-1
      limiquantix vm explain --cpus 4 --memory 8GiB --apart-from app=db --node-label disk=ssd
    """
    session = session_of(context)
    with connect(context) as client:
        if vm:
            _refuse_description(options, file, rules)
            request: Document = {"vmId": vm_id_of(client, vm, options.project_id or "")}
        else:
            request = {"candidate": _candidate(client, options, file, rules)}
        with waiting("asking the scheduler"):
            answer = client.call(PLACEMENT_SERVICE, "ExplainPlacement", request)
    if not session.prints_tables:
        print_document(answer, session.output)
        return
    print_table(_NODE_COLUMNS, [_opinion_row(each, answer) for each in answer.get("nodes", ())])
    _print_line(answer.get("summary", ""))
    _print_lines("would fit", answer.get("wouldFitIf", ()))
    _print_lines("rule without effect", answer.get("ruleFindings", ()))


def _refuse_description(options: VmOptions, file: IO[bytes] | None, rules: Rules) -> None:
    described = VmOptions(project_id=options.project_id) != options or file is not None or rules != Rules()
    if described:
        raise click.UsageError("either name a VM or describe one by options, not both")


def _opinion_row(opinion: Document, answer: Document) -> list[str]:
    rejections = opinion.get("rejections", ())
    name = str(opinion.get("hostname", ""))
    if opinion.get("nodeId") == answer.get("currentNodeId") and answer.get("currentNodeId"):
        name += " (is here)"
    if rejections:
        return [name, "no", "", "; ".join(f"{each.get('filter')}: {each.get('message')}" for each in rejections)]
    parts = ", ".join(f"{each.get('name')} {each.get('points', 0):.1f}" for each in opinion.get("scores", ()))
    return [name, "yes", f"{opinion.get('score', 0):.1f}", parts]


def _print_line(text: object) -> None:
    if text:
        click.echo(one_line(str(text)))


def _print_lines(title: str, texts: Iterable[object]) -> None:
    for text in texts:
        click.echo(f"{title}: {one_line(str(text))}")


@click.command(cls=ApiCommand)
@candidate_options
@click.option(
    "--failed",
    type=click.IntRange(1, _MAX_FAILED_NODES),
    metavar="N",
    help="Up to how many failed nodes to answer for.  [default: 2]",
)
@click.pass_context
def capacity(
    context: click.Context, options: VmOptions, file: IO[bytes] | None, rules: Rules, failed: int | None
) -> None:
    """Say how many more VMs of a size fit.

    Now, and with one or two nodes failed whose VMs are started elsewhere first: of the nodes that could fail, those
    whose failure is the worst. Nothing is changed or claimed.

    \b
    Example:
      limiquantix capacity --cpus 2 --memory 4GiB
    """
    session = session_of(context)
    with connect(context) as client:
        request: Document = {"vm": _candidate(client, options, file, rules)}
        if failed is not None:
            request["failedNodeCount"] = failed
        with waiting("asking the scheduler"):
            answer = client.call(PLACEMENT_SERVICE, "GetCapacity", request)
    if not session.prints_tables:
        print_document(answer, session.output)
        return
    names = {each.get("nodeId"): str(each.get("hostname", "")) for each in answer.get("nodes", ())}
    rows = [
        [str(e.get("hostname", "")), str(e.get("fittingCount", 0)), str(e.get("limit", ""))]
        for e in answer.get("nodes", ())
    ]
    print_table(_CAPACITY_COLUMNS, rows)
    _print_line(f"{answer.get('fittingCount', 0)} more fit; what stops the next: {answer.get('limit', 'nothing')}")
    for failure in answer.get("failures", ()):
        _print_line(_failure_text(failure, names))


def _capacity_row(node: Document) -> list[str]:
    return [str(node.get("hostname", "")), str(node.get("fittingCount", 0)), str(node.get("limit", ""))]


def _failure_text(failure: Document, names: dict[Any, str]) -> str:
    count = int(failure.get("failedNodeCount", 0))
    worst = ", ".join(names.get(node_id, str(node_id)) for node_id in failure.get("worstNodeIds", ()))
    nodes = "1 node" if count == 1 else f"{count} nodes"
    text = f"with {nodes} failed, {failure.get('fittingCount', 0)} more fit"
    if homeless := int(failure.get("homelessVmCount", 0)):
        text += f", and {homeless} {'VM has' if homeless == 1 else 'VMs have'} no place"
    return f"{text} (worst: {worst})" if worst else text
