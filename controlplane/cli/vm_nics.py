"""`limiquantix vm nic`: network cards of a VM that is there already."""

from __future__ import annotations

from typing import Any

import click

from controlplane.cli.api_client import Document
from controlplane.cli.devices import IMPORT_DEADLINE_S, change_device, devices_of, new_id, vm_words
from controlplane.cli.lookup import connect, vm_id_of
from controlplane.cli.output import Column, print_document, print_table
from controlplane.cli.progress import waiting
from controlplane.cli.session import ApiGroup, session_of
from controlplane.cli.vm_changes import Asking, asking_options, project_option, vm_argument
from controlplane.cli.vm_spec_options import Nic

_COLUMNS = (
    Column("ID"),
    Column("MAC"),
    Column("MODEL"),
    Column("NETWORK"),
    Column("LINK"),
    Column("MBIT/S IN", is_number=True),
    Column("MBIT/S OUT", is_number=True),
)

nic_argument = click.argument("nic", metavar="NIC")


@click.group(cls=ApiGroup)
def nic() -> None:
    """Attach, detach, limit and unplug network cards of a VM.

    A card is named by its id, or by how that begins.

    \b
    Example:
      limiquantix vm nic attach web-1 bridge=virbr0
    """


@nic.command("list")
@vm_argument
@project_option
@click.pass_context
def list_command(context: click.Context, vm: str, project: str) -> None:
    """List the network cards of a VM.

    \b
    Example:
      limiquantix vm nic list web-1
    """
    session = session_of(context)
    with connect(context) as client, waiting("reading network cards"):
        found = devices_of(client, vm_id_of(client, vm, project), "nics")
    if session.prints_tables:
        print_table(_COLUMNS, [_row(each) for each in found])
    else:
        print_document({"nics": found}, session.output)


@nic.command()
@vm_argument
@click.argument("spec", metavar="nat|KEY=VALUE[,..]", type=Nic())
@project_option
@asking_options
@click.pass_context
def attach(context: click.Context, vm: str, spec: Document, project: str, asking: Asking) -> None:
    """Attach a network card.

    A running VM takes the models virtio-net, which is the default, and e1000e; others need it to be off. Properties are
    those of 'vm create --nic'.

    \b
    Example:
      limiquantix vm nic attach web-1 bridge=virbr0,model=e1000e
    """
    doing = f"attaching a network card to {vm}"
    changed = change_device(context, "AttachNIC", vm, project, doing, asking, {"nic": spec})
    if changed is not None:
        attached = changed[0].get("spec", {}).get("nics", [{}])[-1]
        address = attached.get("macAddress", "")
        click.echo(f"network card {new_id(changed[0], 'nics')} ({address}) is attached to {vm_words(changed[0])}")


@nic.command()
@vm_argument
@nic_argument
@project_option
@asking_options
@click.pass_context
def detach(context: click.Context, vm: str, nic: str, project: str, asking: Asking) -> None:
    """Detach a network card.

    A guest that runs has to let go of it.

    \b
    Example:
      limiquantix vm nic detach web-1 8c01d7aa
    """
    device = ("nics", "network card", "nicId", nic)
    doing = f"detaching a network card from {vm}"
    changed = change_device(context, "DetachNIC", vm, project, doing, asking, {}, IMPORT_DEADLINE_S, device=device)
    if changed is not None:
        click.echo(f"network card {changed[1]} is detached from {vm_words(changed[0])}")


@nic.command()
@vm_argument
@nic_argument
@click.argument("state", type=click.Choice(("up", "down")))
@project_option
@asking_options
@click.pass_context
def link(context: click.Context, vm: str, nic: str, state: str, project: str, asking: Asking) -> None:
    """Plug a network card's cable in (up) or out (down).

    \b
    Example:
      limiquantix vm nic link web-1 8c01d7aa down
    """
    device = ("nics", "network card", "nicId", nic)
    request: Document = {"linkDown": state == "down"}
    changed = change_device(
        context, "UpdateNIC", vm, project, f"turning a link of {vm} {state}", asking, request, device=device
    )
    if changed is not None:
        click.echo(f"the link of network card {changed[1]} of {vm_words(changed[0])} is {state}")


@nic.command()
@vm_argument
@nic_argument
@project_option
@click.option("--in", "ingress", type=click.IntRange(min=0), metavar="MBIT", default=0, help="Mbit/s to the guest.")
@click.option("--out", "egress", type=click.IntRange(min=0), metavar="MBIT", default=0, help="Mbit/s from the guest.")
@click.option("--burst", type=click.IntRange(min=0), metavar="KIB", default=0, help="KiB that may exceed them at once.")
@asking_options
@click.pass_context
def limit(
    context: click.Context, vm: str, nic: str, project: str, ingress: int, egress: int, burst: int, asking: Asking
) -> None:
    """Set the bandwidth of a network card.

    It has to be on a bridge or a network. Without options, it has all there is.

    \b
    Example:
      limiquantix vm nic limit web-1 8c01d7aa --in 100 --out 20
    """
    device = ("nics", "network card", "nicId", nic)
    request: Document = {"qos": {"ingressRateMbps": ingress, "egressRateMbps": egress, "burstKb": burst}}
    changed = change_device(
        context, "UpdateNIC", vm, project, f"limiting a network card of {vm}", asking, request, device=device
    )
    if changed is not None:
        state = "is limited" if ingress or egress else "has no limits"
        click.echo(f"network card {changed[1]} of {vm_words(changed[0])} {state}")


def _row(found: Document) -> list[str]:
    qos: dict[str, Any] = found.get("qos", {})
    network = found.get("bridge") or found.get("hostNetwork") or found.get("networkId") or "nat"
    return [
        str(found.get("id", "")),
        str(found.get("macAddress", "")),
        str(found.get("model", "VIRTIO_NET")).lower().replace("_", "-"),
        str(network),
        "down" if found.get("linkDown") else "up",
        str(qos.get("ingressRateMbps", "")),
        str(qos.get("egressRateMbps", "")),
    ]
