"""What a filter is, and what it says of a node that it refuses."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection
from dataclasses import dataclass

from controlplane.scheduler.snapshot import Candidate, PlacementRequest

_MAX_NAMED = 3
"""Names a message spells out; the rest are counted, since a policy may list a thousand."""


@dataclass(frozen=True, slots=True)
class Words:
    """A filter's stable name, and how a summary speaks of the nodes it refused.

    `one` and `many` follow their count, `found_format` has one `{}` for what they have: "2 lack memory (need 8192 MiB;
    free 4096/2048 MiB)".
    """

    name: str
    one: str
    many: str
    found_format: str = "{}"


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why one node may not take a VM; `message` has the numbers of this node.

    For the summary: `wanted` is what the request asked for, the same for every node; `found` is what the node has
    instead, where numbers are listed largest first, texts alphabetically, and None not at all.
    """

    words: Words
    message: str
    wanted: str = ""
    found: int | str | None = None

    @property
    def filter(self) -> str:
        """Stable name of the filter that refused."""
        return self.words.name


Check = Callable[[Candidate, PlacementRequest], Rejection | None]


class Reads(enum.Enum):
    """What a filter looks at, beside the node as it is: this says when its answer may be kept."""

    NODE = enum.auto()
    """Only what `PlacementRequest.static_key` has: the answer holds until the node changes."""
    NAMES = enum.auto()
    """Lists of node names in the request."""
    OTHER_VMS = enum.auto()
    """Where other VMs are."""
    ROOM = enum.auto()
    """How many vCPUs and how much memory are claimed."""
    TAKEN = enum.auto()
    """What else placed VMs hold."""


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter and the requests it concerns; with others it is not run at all, which keeps a decision short."""

    check: Check
    concerns: Callable[[PlacementRequest], bool] = lambda _request: True
    reads: Reads = Reads.NODE


def listed(names: Collection[str]) -> str:
    """Join names in order, the first few spelled out."""
    ordered = sorted(names)
    text = ", ".join(ordered[:_MAX_NAMED])
    more_count = len(ordered) - _MAX_NAMED
    return f"{text} and {more_count} more" if more_count > 0 else text
