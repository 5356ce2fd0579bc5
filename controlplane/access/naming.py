"""What a request names, of what there is: for the record of a call, also of one that was refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from google.protobuf.message import Message

from controlplane.access.memory import AccessMemory
from controlplane.access.methods import MethodRule, Need, Target
from controlplane.access.tree import AccessTree
from controlplane.domain.access import THE_CLUSTER, Place, place_of_new
from controlplane.domain.placement_rules import named_vm_ids
from controlplane.domain.vm import DEFAULT_PROJECT_ID
from limiquantix.errors import Unavailable

_WORDS: Final[Mapping[Target, str]] = {
    Target.VM: "vm",
    Target.PROJECT_OF_VM: "vm",
    Target.NODE: "node",
    Target.PROJECT: "project",
    Target.FOLDER: "folder",
    Target.PROJECT_OF_FOLDER: "folder",
    Target.OPERATION: "operation",
    Target.BINDING: "binding",
}

MAX_RULED_VMS: Final = 20
"""VMs in a record for being named by placement rules; these may name thousands, and are in the request as recorded."""


def named_by(memory: AccessMemory, rule: MethodRule, request: Message) -> str:
    """List what a request names and is known in memory, and the projects of it: "vm/<id>,project/<id>".

    Of VMs that only placement rules name, those beyond `MAX_RULED_VMS` are counted: "vm/and-80-more". The first project
    is the one in which something is done, which is that of a new VM and not of what it is made of.
    """
    things: dict[str, None] = {}
    projects: dict[str, None] = {}
    for need in sorted(rule.needs, key=lambda each: each.target is not Target.NEW_VM):
        for word, thing_id in _things(memory, need, request):
            place = _place(memory, word, thing_id)
            if place is None:
                continue
            if word != "project":
                things[f"{word}/{thing_id}"] = None
            if place.project_id:
                projects[f"project/{place.project_id}"] = None
        if need.target is Target.RULED_VMS:
            more_count = len(ruled_vm_ids(request, need.field)) - MAX_RULED_VMS
            if more_count > 0:
                things[f"vm/and-{more_count}-more"] = None
    return ",".join([*things, *projects])


def ruled_vm_ids(request: Message, path: str) -> list[str]:
    """List the ids of all VMs that placement rules of a request name, in order.

    Args:
        path: of the spec with the rules; of many specs, if a part of it is repeated.
    """
    specs = messages_at(request, path)
    return sorted({vm_id for spec in specs for vm_id in named_vm_ids(spec.placement)})  # type: ignore[attr-defined]


def messages_at(request: Message, path: str) -> list[Message]:
    """Find the messages at a path in a request, of which any part may be repeated."""
    found = [request]
    for name in path.split("."):
        found = [inner for each in found for inner in _inner(each, name)]
    return found


def _inner(message: Message, name: str) -> Iterable[Message]:
    value = getattr(message, name)
    return value if message.DESCRIPTOR.fields_by_name[name].is_repeated else (value,)


def _things(memory: AccessMemory, need: Need, request: Message) -> Iterator[tuple[str, str]]:
    """Yield what may be named, by kind and id; "" where nothing is."""
    if need.target is Target.NEW_VM:
        source_id, folder_id = str(getattr(request, need.field)), request.folder_id  # type: ignore[attr-defined]
        source = memory.known_place(source_id) or Place(DEFAULT_PROJECT_ID)
        folder = _place(memory, "folder", folder_id)
        new = place_of_new(request.project_id, folder_id, folder, source)  # type: ignore[attr-defined]
        yield from (("project", new.project_id), ("vm", source_id), ("folder", new.folder_id))
    elif need.target is Target.PLACE:
        yield from (("folder", request.folder_id), ("project", request.project_id))  # type: ignore[attr-defined]
    elif need.target is Target.RULED_VMS:
        yield from (("vm", vm_id) for vm_id in ruled_vm_ids(request, need.field)[:MAX_RULED_VMS])
    elif need.target is Target.CANDIDATES:
        for candidate in messages_at(request, need.field):
            yield "project", candidate.project_id or DEFAULT_PROJECT_ID  # type: ignore[attr-defined]
    elif need.target in _WORDS:
        default = DEFAULT_PROJECT_ID if need.target is Target.PROJECT else ""
        yield _WORDS[need.target], str(getattr(request, need.field)) or default


def _place(memory: AccessMemory, word: str, thing_id: str) -> Place | None:
    """Say where a thing is; None if that is not known. Asks nobody: what decided about the call has just asked."""
    if not thing_id:
        return None
    if word in ("node", "operation"):
        return THE_CLUSTER
    if word == "vm":
        return memory.known_place(thing_id)
    try:
        return _place_in(memory.latest, word, thing_id)
    except Unavailable:
        return None


def _place_in(tree: AccessTree, word: str, thing_id: str) -> Place | None:
    if word == "folder":
        return tree.folder(thing_id)
    if word == "project":
        return Place(thing_id) if tree.has_project(thing_id) else None
    binding = tree.binding(thing_id)
    return None if binding is None else binding.place
