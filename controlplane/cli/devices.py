"""What the commands on devices of a VM share: finding one by its id, and asking for a change of it."""

from __future__ import annotations

from typing import Any

import click

from controlplane.cli.api_client import CHANGE_DEADLINE_S, VM_SERVICE, ApiClient, Document
from controlplane.cli.failures import Failure
from controlplane.cli.lookup import connect, vm_id_of
from controlplane.cli.output import print_document
from controlplane.cli.session import session_of
from controlplane.cli.terminal_text import one_line
from controlplane.cli.vm_changes import Asking, ask
from limiquantix.errors import NotFound, Reason

IMPORT_DEADLINE_S = 330.0
"""Making or importing an image; the server allows its host 300 s."""
_MIN_PREFIX_CHARS = 4
"""A shorter beginning of an id is more likely a slip."""


def devices_of(client: ApiClient, vm_id: str, name: str) -> list[Document]:
    """Read a VM's devices of one kind: "disks", "nics" or "cdroms"."""
    found = client.call(VM_SERVICE, "GetVM", {"id": vm_id})
    return list(found.get("spec", {}).get(name, ()))


def find_device(devices: list[Document], word: str, kind: str) -> Document:
    """Find a device by its id or by how that begins.

    Raises:
        NotFound: there is none.
        Failure: several begin so.
    """
    wanted = word.lower()
    found = [each for each in devices if each.get("id") == wanted]
    if not found and len(wanted) >= _MIN_PREFIX_CHARS:
        found = [each for each in devices if str(each.get("id", "")).startswith(wanted)]
    if len(found) > 1:
        raise Failure(
            f"{len(found)} of the VM's devices begin with {word!r}",
            explanations=tuple(f"{kind} {each.get('id')}" for each in found),
            hint="write more of the id",
        )
    if not found:
        raise NotFound(Reason.DEVICE_NOT_FOUND, f"the VM has no {kind} {word!r}")
    return found[0]


def change_device(
    context: click.Context,
    method: str,
    vm: str,
    project: str,
    doing: str,
    asking: Asking,
    request: Document,
    deadline_s: float = CHANGE_DEADLINE_S,
    *,
    device: tuple[str, str, str, str] | None = None,
) -> tuple[Document, str] | None:
    """Ask for a change of a device, and wait for it.

    Args:
        device: of one that is there: the kind's name in a spec, what it is called, the request's field for its id, and
            what the caller wrote.

    Returns:
        The VM as it is then, and the device's id if it was there before; None if nobody waits, or a document was
        printed.
    """
    session = session_of(context)
    with connect(context) as client:
        vm_id = vm_id_of(client, vm, project)
        device_id = ""
        if device is not None:
            name, kind, field, word = device
            device_id = str(find_device(devices_of(client, vm_id, name), word, kind).get("id", ""))
            request = {**request, field: device_id}
        changed = ask(context, client, method, {**request, "vmId": vm_id}, doing, vm, asking, deadline_s)
    if changed is None:
        return None
    if not session.prints_tables:
        print_document(changed, session.output)
        return None
    return changed, device_id


def new_id(changed: Document, name: str) -> str:
    """Return the id of the device that was attached last."""
    devices: list[Any] = changed.get("spec", {}).get(name, [])
    return str(devices[-1].get("id", "")) if devices else ""


def vm_words(changed: Document) -> str:
    """Name a VM in a line."""
    return f"VM {one_line(str(changed.get('name', '')))}"
