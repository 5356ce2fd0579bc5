"""`limiquantix vm create` and `vm update`."""

from __future__ import annotations

from typing import IO, Any

import click

from controlplane.cli.api_client import CHANGE_DEADLINE_S, VM_SERVICE, ApiClient, Document
from controlplane.cli.ha_options import Restarting, add_restarting, ha_options
from controlplane.cli.lookup import complete_node, complete_vm, connect, node_id_of, vm_id_of
from controlplane.cli.output import print_document
from controlplane.cli.placement_options import Rules, add_rules, placement_options
from controlplane.cli.places import folder_id_of, folder_option, project_id_of
from controlplane.cli.session import ApiCommand, session_of
from controlplane.cli.terminal_text import one_line
from controlplane.cli.views import node_name
from controlplane.cli.vm_changes import (
    Asking,
    ask,
    asking_options,
    hostname_of,
    print_changed,
    project_option,
    vm_argument,
)
from controlplane.cli.vm_clones import CLONE_DEADLINE_S
from controlplane.cli.vm_first_boot import first_boot_options, first_boot_paths
from controlplane.cli.vm_hardware import Hardware, add_hardware, hardware_options
from controlplane.cli.vm_spec_options import (
    FIRMWARES,
    Disk,
    Label,
    MemorySize,
    Nic,
    VmOptions,
    create_request,
    read_document,
)


@click.command(cls=ApiCommand)
@click.argument("name", required=False)
@click.option("--cpus", type=click.IntRange(min=1), metavar="N", help="Number of vCPUs.")
@click.option("--memory", "memory_mib", type=MemorySize(), metavar="SIZE", help="Memory, such as 512MiB or 2GiB.")
@click.option(
    "--disk",
    "disks",
    type=Disk(),
    multiple=True,
    metavar="SIZE[,..]",
    help="Disk of whole GiB, such as 20GiB,bus=virtio-scsi,format=raw. Properties: bus, format, provisioning, cache, "
    "backing (an image on the host to start from; the size may be left out), source and source-format (qcow2, raw or "
    "vmdk: an image on the host to copy), volume, pool, readonly, discard. Repeatable.",
)
@click.option(
    "--nic",
    "nics",
    type=Nic(),
    multiple=True,
    metavar="bridge=NAME[,..]",
    help='Network card. Properties: bridge, network, model, mac; "nat" only reaches outside. Repeatable.',
)
@click.option("--cdrom", "cdroms", multiple=True, metavar="PATH", help="ISO image on the host. Repeatable.")
@click.option("--kernel", metavar="PATH", help="Kernel on the host to boot, instead of a disk's boot loader.")
@click.option("--initrd", metavar="PATH", help="Initial RAM disk on the host for --kernel.")
@click.option("--cmdline", metavar="TEXT", help="Command line for --kernel.")
@click.option("--firmware", type=click.Choice(list(FIRMWARES), case_sensitive=False), help="Firmware of the VM.")
@click.option("--label", "labels", type=Label(), multiple=True, metavar="KEY=VALUE", help="Label. Repeatable.")
@click.option("--description", metavar="TEXT", help="Note for people.")
@click.option("--project", metavar="PROJECT", help="Project that owns the VM, by name or id.")
@folder_option
@click.option("--node", metavar="NODE", shell_complete=complete_node, help="Node to use, by host name or id.")
@click.option("--template", metavar="VM", shell_complete=complete_vm, help="Template to make it from, by name or id.")
@click.option("--linked", is_flag=True, help="Build upon the template's disks instead of copying them.")
@first_boot_options
@hardware_options
@placement_options
@ha_options
@click.option("--start", is_flag=True, help="Start the VM too.")
@click.option("--dry-run", is_flag=True, help="Only say whether it could be made and on which node; nothing is done.")
@click.option(
    "--from-file",
    "file",
    type=click.File("rb"),
    metavar="FILE",
    help="YAML or JSON with the whole request (name, labels, spec, ...) or only its spec; - is standard input. "
    "Options win over it.",
)
@asking_options
@click.pass_context
def create(
    context: click.Context,
    /,
    file: IO[bytes] | None,
    node: str | None,
    start: bool,
    project: str | None,
    folder: str | None,
    template: str | None,
    linked: bool,
    provisioning: Document | None,
    hardware: Hardware,
    rules: Rules,
    restarting: Restarting,
    dry_run: bool,
    asking: Asking,
    **given: Any,
) -> None:
    """Create a VM.

    Places it on a node, makes its disks and defines it there. All or nothing: a failure leaves nothing behind.

    \b
    Example:
      limiquantix vm create web-1 --cpus 2 --memory 2GiB --disk 20GiB --nic bridge=virbr0 --start
      limiquantix vm create web-2 --template debian-12 --linked --ssh-key ~/.ssh/id_ed25519.pub --start
      limiquantix vm create web-3 --cpus 2 --memory 2GiB --label app=web --apart-from app=web --dry-run
    """
    options = VmOptions(**given)
    request = create_request(options, read_document(file) if file is not None else {})
    if start:
        request.pop("start_on_create", None)
        request["startOnCreate"] = True
    if provisioning is not None:
        request["spec"]["provisioning"] = provisioning
    add_hardware(request["spec"], hardware)
    if linked:
        request["spec"]["template"] = {"cloneType": "LINKED"}
    name = str(request["name"])
    with connect(context) as client:
        project_id = project_id_of(client, project)
        if project_id:
            request.pop("project_id", None)
            request["projectId"] = project_id
        if folder:
            request.pop("folder_id", None)
            request["folderId"] = folder_id_of(client, folder, project_id)
        add_rules(client, request["spec"], rules, project_id)
        add_restarting(client, request["spec"], restarting, project_id)
        if node:
            request.pop("node_id", None)
            request["nodeId"] = node_id_of(client, node)
        deadline_s = CHANGE_DEADLINE_S
        if template:
            request.pop("template_id", None)
            request["templateId"] = vm_id_of(client, template, "")
            deadline_s = CLONE_DEADLINE_S
        if dry_run:
            _print_possible(context, client, client.call(VM_SERVICE, "CreateVM", {**request, "validateOnly": True}))
            return
        created = ask(context, client, "CreateVM", request, f"creating {name}", name, asking, deadline_s)
        if created is not None:
            print_changed(context, client, created)


def _print_possible(context: click.Context, client: ApiClient, vm: Document) -> None:
    """Print what a VM would be that was not made."""
    session = session_of(context)
    if not session.prints_tables:
        print_document(vm, session.output)
        return
    where = node_name(vm, hostname_of(client, vm))
    click.echo(f"VM {one_line(str(vm.get('name', '')))} could be made on {one_line(where)}; nothing was done")


@click.command(cls=ApiCommand)
@vm_argument
@project_option
@click.option("--cpus", type=click.IntRange(min=1), metavar="N", help="Cores of a socket.")
@click.option("--memory", "memory_mib", type=MemorySize(), metavar="SIZE", help="Memory, such as 512MiB or 2GiB.")
@click.option("--description", metavar="TEXT", help="Note for people; empty removes it.")
@click.option("--label", "labels", type=Label(), multiple=True, metavar="KEY=VALUE", help="Set a label. Repeatable.")
@click.option("--remove-label", "removed_labels", multiple=True, metavar="KEY", help="Remove a label. Repeatable.")
@first_boot_options
@hardware_options
@placement_options
@ha_options
@click.option("--no-rules", is_flag=True, help="Remove all rules about where it may run.")
@asking_options
@click.pass_context
def update(
    context: click.Context,
    vm: str,
    project: str,
    cpus: int | None,
    memory_mib: int | None,
    description: str | None,
    labels: tuple[tuple[str, str], ...],
    removed_labels: tuple[str, ...],
    provisioning: Document | None,
    hardware: Hardware,
    rules: Rules,
    restarting: Restarting,
    no_rules: bool,
    asking: Asking,
) -> None:
    """Change a VM: size, labels, first boot, rules, HA.

    What is not named stays. A running VM gets more CPU and memory at once, up to --max-cpus and --max-memory it was
    started with; what cannot be done now takes effect when it is started next, and is shown. What the guest is told at
    its first boot can be changed while the VM is off. Rules about where it may run replace those of the same sort:
    --apart-from and --together-with are one sort. They hold when the VM is placed or moved next.

    \b
    Example:
      limiquantix vm update web-1 --memory 4GiB --label tier=web --remove-label draft
    """
    spec: Document = {}
    paths = []
    if cpus is not None:
        spec["cpu"] = {"cores": cpus}
        paths.append("spec.cpu.cores")
    if memory_mib is not None:
        spec["memory"] = {"sizeMib": memory_mib}
        paths.append("spec.memory.sizeMib")
    if description is not None:
        paths.append("description")
    if labels or removed_labels:
        paths.append("labels")
    if provisioning is not None:
        spec["provisioning"] = provisioning
        paths += first_boot_paths(provisioning)
    paths += add_hardware(spec, hardware)
    if no_rules:
        if rules != Rules():
            raise click.UsageError("--no-rules removes all rules; say it alone, or only the rules that shall be")
        paths.append("spec.placement")
    elif not paths and rules == Rules() and restarting == Restarting():
        raise click.UsageError(
            "say what to change: --cpus, --memory, --description, --label, --remove-label, what the guest is told, "
            "rules such as --apart-from, or what --ha does"
        )
    with connect(context) as client:
        paths += add_rules(client, spec, rules, project) + add_restarting(client, spec, restarting, project)
        request: Document = {
            "id": vm_id_of(client, vm, project),
            "spec": spec,
            "description": description or "",
            "updateMask": ",".join(paths),
        }
        if "labels" in paths:
            present = client.call(VM_SERVICE, "GetVM", {"id": request["id"]}).get("labels", {})
            kept = {key: value for key, value in present.items() if key not in removed_labels}
            request["labels"] = kept | dict(labels)
        changed = ask(context, client, "UpdateVM", request, f"updating {vm}", vm, asking)
        if changed is not None:
            print_changed(context, client, changed)
