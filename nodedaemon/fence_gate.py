"""Refuse commands that were decided before this host was fenced, or by a leader that was deposed since.

Each call that changes something carries, as metadata, the token of its node's newest fence and the epoch as they were
when it was decided. They are compared when the call comes, and again when its turn comes, since it may have waited.
Calls without them, as a person may make, are let through. Nothing is, from when the host ends its VMs to go down.

A call with them waits until this daemon was told of fences since it began: a host that was fenced by its power and is
on again remembers the numbers from before, and what was decided then may come only now, held up by a process that stood
still. A host that said that it ended its VMs stays shut in that boot, also for the next daemon, until it takes that
back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from limiquantix.errors import FieldViolation, InvalidArgument, Reason, Unavailable
from nodedaemon.self_fencing.keeper import SelfFencing

TOKEN_KEY: Final = "limiquantix-fence-token"  # noqa: S105 - a name, no secret
EPOCH_KEY: Final = "limiquantix-epoch"
MAX_NUMBER: Final = 2**63 - 1

READS: Final = frozenset(
    {
        "ForecastMigration",
        "GetConsoleLog",
        "GetGuestInfo",
        "GetMigration",
        "GetNodeInfo",
        "GetVMStatus",
        "HealthCheck",
        "ListSnapshots",
        "ListVMs",
        "PingGuestAgent",
        "StreamEvents",
        "StreamMetrics",
    }
)
"""Methods that change nothing here; everything else is looked at, so that a new method is by default."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a call carried; -1 for what it did not."""

    epoch: int = -1
    fence_token: int = -1


_NOTHING: Final = Told()
_told: ContextVar[Told] = ContextVar("told")


class FenceGate:
    """What every call passes.

    Args:
        is_told: whether there is a control plane that tells this host of fences; without one it waits for none.
    """

    def __init__(self, fencing: SelfFencing, is_told: Callable[[], bool] = lambda: True) -> None:
        self._fencing = fencing
        self._is_told = is_told
        self._is_closed = False

    def close(self) -> None:
        """Let no change in any more, nor go on that was let in and looks again."""
        self._is_closed = True

    @property
    def is_shut(self) -> bool:
        """Whether a daemon of this boot said that it ended all VMs, and that was not taken back."""
        return self._is_told() and self._fencing.is_shut

    async def shut(self) -> None:
        """Close, for all of this boot.

        Raises:
            Unavailable: it could not be written down.
        """
        self.close()
        await self._fencing.shut()

    async def reopen(self) -> None:
        """Let changes in again that a daemon before shut out; not what this one closed.

        Raises:
            Unavailable: it could not be written down.
        """
        await self._fencing.reopen()

    async def admit(self, method: str, metadata: Sequence[tuple[str, str | bytes]] | None) -> None:
        """Let a call in, and remember larger numbers first, on the disk.

        Args:
            method: "/package.Service/Method".

        Raises:
            Aborted: STALE_EPOCH or STALE_FENCE_TOKEN.
            InvalidArgument: what should be a number is none.
            Unavailable: it could not be written down, the host goes down, or it was told of no fences in time.
        """
        if method.rpartition("/")[2] in READS:
            return
        self._require_open()
        told = Told(_number(metadata, EPOCH_KEY), _number(metadata, TOKEN_KEY))
        if told != _NOTHING:
            self._fencing.require_newest(told.epoch, told.fence_token)  # what is known now needs no waiting
            if self._is_told():
                await self._fencing.until_informed()
            self._require_open()
            await self._fencing.take_told(told.epoch, told.fence_token)
        _told.set(told)

    def told(self) -> Told:
        """Return what the call that is being served carried."""
        return _told.get(_NOTHING)

    def require_newest(self, told: Told) -> None:
        """Look again, when the turn of a call has come.

        Raises:
            Aborted: it was overtaken meanwhile.
            Unavailable: the host goes down.
        """
        self._require_open()
        self._fencing.require_newest(told.epoch, told.fence_token)

    def _require_open(self) -> None:
        if self._is_closed:
            raise Unavailable(
                Reason.STOPPING, "this host goes down and has ended its VMs; place the VM on another, or wait for it"
            )
        if self.is_shut:
            raise Unavailable(
                Reason.STOPPING,
                "this host said that it goes down and ended its VMs, but its daemon was started again; VMs can be "
                "started here once it has told a control plane that it goes on: see that it reaches one",
                retry_after_s=1.0,
            )


def _number(metadata: Sequence[tuple[str, str | bytes]] | None, key: str) -> int:
    found = [value for name, value in metadata or () if name == key]
    if not found:
        return -1
    text = found[-1] if isinstance(found[-1], str) else ""
    if not text.isascii() or not text.isdigit() or len(text) > len(str(MAX_NUMBER)) or int(text) > MAX_NUMBER:
        raise InvalidArgument.from_violations([FieldViolation(key, f"must be a number from 0 to {MAX_NUMBER}")])
    return int(text)
