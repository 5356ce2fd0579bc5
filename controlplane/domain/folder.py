"""Folders: the tree in which people arrange a project's VMs, and at which roles can be bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from controlplane.domain.access import VisiblePlaces

MAX_DEPTH = 32
"""Levels below a project's root; every decision about what is in a folder goes all of them up."""
DEFAULT_TYPE = "vm"
TYPES = ("vm", "template", "host", "datastore")


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder; `parent_id` is "" at the root of its project."""

    id: str
    project_id: str
    parent_id: str
    name: str
    type: str
    created_at: datetime
    updated_at: datetime
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    created_by: str = ""
    version: int = 1


@dataclass(frozen=True, slots=True)
class FolderFilter:
    """Which folders; an empty part does not filter. `visible` None shows all."""

    project_id: str = ""
    parent_id: str = ""
    type: str = ""
    visible: VisiblePlaces | None = None


class FolderTreeOf:
    """The folders of one project, for questions about who is above and below whom."""

    def __init__(self, folders: Sequence[Folder]) -> None:
        self._by_id = {each.id: each for each in folders}
        self._below: dict[str, list[Folder]] = {}
        for each in sorted(folders, key=lambda folder: (folder.name, folder.id)):
            self._below.setdefault(each.parent_id, []).append(each)

    def children(self, folder_id: str) -> Sequence[Folder]:
        """Folders directly below one, or below the root for "", by name."""
        return self._below.get(folder_id, ())

    def lineage(self, folder_id: str) -> list[Folder]:
        """The folder and those above it, the topmost last; [] if there is no such folder."""
        found = []
        while (folder := self._by_id.get(folder_id)) is not None:
            found.append(folder)
            folder_id = folder.parent_id
        return found

    def subtree(self, folder_id: str) -> list[Folder]:
        """The folder and all below it, each after the one above it."""
        found = [self._by_id[folder_id]] if folder_id in self._by_id else []
        for folder in found:
            found.extend(self.children(folder.id))
        return found

    def height(self, folder_id: str) -> int:
        """Levels that a folder and what is below it take."""
        return 1 + max((self.height(each.id) for each in self.children(folder_id)), default=0)
