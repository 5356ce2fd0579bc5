"""Who makes the call that is being answered, for whatever runs inside it.

A context variable, because who calls matters to places far below the servicers (which VMs a list shows), and because a
task that a call starts inherits it. Only the guard sets it.
"""

from __future__ import annotations

from contextvars import ContextVar

from controlplane.domain.principal import Principal

calling: ContextVar[Principal | None] = ContextVar("calling", default=None)
"""The principal of the call under way; None outside of calls."""


class NobodyCallsError(RuntimeError):
    """Something that depends on who calls ran outside of every call: a defect of ours, never an answer."""


def caller() -> Principal:
    """Return who calls.

    Raises:
        NobodyCallsError: no call is under way, or the transport has no guard.
    """
    principal = calling.get()
    if principal is None:
        raise NobodyCallsError("this depends on who calls, and no guard has said who does")
    return principal


NOBODY = "anonymous"
"""How records name who acted where no guard says who does."""


def caller_name() -> str:
    """Name who calls, for records: "user:alice"."""
    principal = calling.get()
    return NOBODY if principal is None else principal.text
