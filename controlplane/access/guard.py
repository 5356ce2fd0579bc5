"""The gate that every call goes through, on both transports: who calls, may they, and a record of it.

See decision 24. What is not in the table of methods passes for nobody.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol

import structlog
from google.protobuf.message import Message

from controlplane.access.authorizer import Authorizer
from controlplane.access.calling import calling
from controlplane.access.interface import AuditTrail, Authenticator, CallsNoted
from controlplane.access.limits import CallLimits, Ended
from controlplane.access.methods import Audience
from controlplane.access.recorded_reads import RecentReads
from controlplane.domain import access_errors
from controlplane.domain.principal import Principal
from limiquantix.errors import ApiError, Code, ResourceExhausted, Unauthenticated
from limiquantix.rpc.pipeline import CallOrigin

_log = structlog.get_logger(__name__)


class OwnBodies(Protocol):
    """Checks that what a host's request names is the host's own."""

    async def require_own(self, principal: Principal, method: str, request: Message) -> None:
        """Let the request pass.

        Raises:
            PermissionDenied: its body names another node, or VMs that are not on the caller's.
        """
        ...


class Guard:
    """The `CallGuard` of the control plane.

    Args:
        authenticator: knows the one kind of credential that counts at this port.
        bodies: asked for every call of a host.
        noted: told of every call that is not one too many.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        authorizer: Authorizer,
        audit: AuditTrail,
        limits: CallLimits,
        bodies: OwnBodies,
        noted: CallsNoted | None = None,
    ) -> None:
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._audit = audit
        self._limits = limits
        self._bodies = bodies
        self._noted = noted
        self._reads = RecentReads()

    async def admit(self, method: str, origin: CallOrigin) -> None:
        """Find out who calls, and count it; from now on `calling` says who it is.

        Raises:
            Unauthenticated: it is not known who calls, or the credential is not good.
            ResourceExhausted: the caller calls too often.
        """
        if calling.get() is not None:
            calling.set(None)
        rule = self._authorizer.rule(method)
        if rule is not None and rule.audience is Audience.ANYBODY:
            # Whatever credential comes with it: who logs in anew may send along one that has ended.
            self._count_stranger(origin)
            return
        try:
            principal = await self._authenticator.authenticate(origin)
        except Unauthenticated as error:
            await self._turn_away(method, origin, error)
            raise
        except ApiError:
            # Nobody can be known while the database is away; that is no flood of those who try again.
            if self._noted is not None:
                self._noted.stranger_called(origin.peer())
            raise
        if principal is None:
            refusal = access_errors.not_logged_in()
            await self._turn_away(method, origin, refusal)
            raise refusal
        _when_it_ends(self._limits.count_principal(principal))
        calling.set(principal)
        if self._noted is not None:
            self._noted.known_called(origin.peer())

    def around(self, method: str, request: Message, origin: CallOrigin) -> AbstractAsyncContextManager[None]:
        """Let the call happen if it may; see `CallGuard`."""
        return _Call(self, method, request, origin)

    async def recheck(self, method: str, request: Message, origin: CallOrigin) -> None:
        """Find out whether a stream may go on: who called still calls, as the same, and may what it is.

        Raises:
            Unauthenticated: the token or key has ended or was taken back, or the caller has other groups now.
            PermissionDenied, NotFound: as a new call would be answered.
            Unavailable: it cannot be known.
        """
        began = calling.get()
        if began is None:
            return
        now = await self._authenticator.authenticate(origin)
        if now != began:
            raise access_errors.caller_changed()
        await self._authorizer.authorize(began, method, request)

    async def _begin(self, method: str, request: Message, origin: CallOrigin) -> str:
        """Refuse the call, or let it begin.

        Returns:
            The id of the record that is to be completed when it has ended; "" where none is kept.

        Raises:
            ApiError: it may not, or no record can be kept of it.
        """
        principal, rule = calling.get(), self._authorizer.rule(method)
        if rule is not None and rule.audience is Audience.ANYBODY:
            # What proves that it may is in the request, and known to the service.
            return await self._audit.begin(None, method, request, "", origin) if rule.is_audited else ""
        if principal is None:
            raise access_errors.not_logged_in()
        try:
            await self._authorizer.authorize(principal, method, request)
            if rule is not None and rule.audience is Audience.HOSTS:
                await self._bodies.require_own(principal, method, request)
        except ApiError as error:
            named = self._authorizer.named(method, request)
            await self._audit.refused(principal, method, request, named, origin, error.code, error.message)
            raise
        if rule is None or not rule.is_audited:
            return ""
        named = self._authorizer.named(method, request)
        if rule.is_read and not self._reads.is_news(principal.text, method, named):
            return ""
        return await self._audit.begin(principal, method, request, named, origin)

    async def _end(self, record_id: str, error: BaseException | None) -> None:
        """Complete the record of a call that ended, whatever became of it."""
        if error is None:
            await self._complete(record_id, 0, "")
        elif isinstance(error, ApiError):
            await self._complete(record_id, error.code, error.message)
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            await self._complete(record_id, Code.CANCELLED, "the caller did not wait for the answer")
        elif isinstance(error, TimeoutError):
            await self._complete(record_id, Code.DEADLINE_EXCEEDED, "")
        elif isinstance(error, NotImplementedError):
            await self._complete(record_id, Code.UNIMPLEMENTED, "")
        else:
            await self._complete(record_id, Code.INTERNAL, "")

    async def _complete(self, record_id: str, code: int, message: str) -> None:
        """Complete a record; that the change began is on record already, so what happened stays what is answered."""
        try:
            await asyncio.shield(self._audit.end(record_id, code, message))
        except ApiError as error:
            _log.error("audit_record_incomplete", record_id=record_id, error=error.message)

    def _count_stranger(self, origin: CallOrigin) -> None:
        peer = origin.peer()
        _when_it_ends(self._limits.count_stranger(peer))
        if self._noted is not None:
            self._noted.stranger_called(peer)

    async def _turn_away(self, method: str, origin: CallOrigin, refusal: Unauthenticated) -> None:
        """Count a call of nobody known, and keep a record of it unless there are too many.

        Raises:
            ResourceExhausted: there are.
        """
        try:
            self._count_stranger(origin)
        except ResourceExhausted as error:
            raise error from refusal
        await self._audit.refused(None, method, None, "", origin, refusal.code, refusal.message)


def _when_it_ends(ended: Ended) -> None:
    """Have that done when the call is over: both transports answer each in a task of its own, however it ends."""
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a call is answered outside of any task")
    task.add_done_callback(lambda _: ended())


class _Call:
    """One call: let in when it is entered, its record completed when it is left.

    A class, not a generator with a decorator, since every call passes here.
    """

    __slots__ = ("_guard", "_method", "_origin", "_record_id", "_request")

    def __init__(self, guard: Guard, method: str, request: Message, origin: CallOrigin) -> None:
        self._guard = guard
        self._method = method
        self._request = request
        self._origin = origin
        self._record_id = ""

    async def __aenter__(self) -> None:
        self._record_id = await self._guard._begin(self._method, self._request, self._origin)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._record_id:
            await self._guard._end(self._record_id, error)
        if isinstance(error, ApiError) and error.metadata:
            told = self._guard._authorizer.told(calling.get(), error)
            if told is not error:
                raise told from error
