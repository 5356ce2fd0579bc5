"""Keeps the cluster from being left without anybody who may give roles."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from controlplane.domain import access_errors
from controlplane.domain.access import ADMIN, THE_CLUSTER
from controlplane.domain.identity import UserFilter
from controlplane.state.interface import Transaction

ResultT = TypeVar("ResultT")

_USER, _GROUP = "user:", "group:"


async def keeping_an_admin(tx: Transaction, change: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """Make a change to users or roles after which somebody who may act is still admin of the cluster.

    Such changes take turns, on all control planes: of two admins who disable each other, the second is refused.

    Raises:
        FailedPrecondition: LAST_ADMIN, there was such a user before and would be none.
    """
    await tx.begin_access_change()
    had_one = await _has_admin(tx)
    result = await change()
    if had_one and not await _has_admin(tx):
        raise access_errors.last_admin()
    return result


async def _has_admin(tx: Transaction) -> bool:
    for binding in await tx.bindings():
        is_admin = binding.role_id == ADMIN and binding.place == THE_CLUSTER
        if is_admin and await _may_anybody_act(tx, binding.subject):
            return True
    return False


async def _may_anybody_act(tx: Transaction, subject: str) -> bool:
    if subject.startswith(_GROUP):
        members = await tx.list_users(UserFilter(subject.removeprefix(_GROUP), include_disabled=False), None, 1)
        return bool(members.items)
    user = await tx.get_user(subject.removeprefix(_USER))
    return user is not None and user.may_act
