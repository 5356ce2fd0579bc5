"""What a list call asks for, and what it gets: filters, a stable order, a cursor and the true total."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, TypeVar

from controlplane.domain.access import VisiblePlaces

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1_000


@dataclass(frozen=True, slots=True)
class Cursor:
    """Position after the last row of a page: rows are ordered by creation time, then id, both unique together."""

    created_at: datetime
    id: str


@dataclass(frozen=True, slots=True)
class VmFilter:
    """Which VMs; an empty part does not filter. Labels must all match, states any; `visible` None shows all."""

    project_id: str = ""
    node_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    states: frozenset[int] = frozenset()
    visible: VisiblePlaces | None = None


@dataclass(frozen=True, slots=True)
class NodeFilter:
    """Which nodes; an empty part does not filter. Labels must all match, phases any, roles all that are set."""

    labels: Mapping[str, str] = field(default_factory=dict)
    phases: frozenset[int] = frozenset()
    compute_only: bool = False
    storage_only: bool = False
    control_plane_only: bool = False


ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class Page(Generic[ItemT]):
    """One page: `next_cursor` is None on the last one; `total_count` counts all rows the filter matches."""

    items: Sequence[ItemT]
    next_cursor: Cursor | None
    total_count: int
