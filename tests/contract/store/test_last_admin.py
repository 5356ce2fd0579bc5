"""Somebody who may log in is always admin of the cluster, on every kind of database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from controlplane.domain.access import ADMIN, VIEWER, Binding, Place
from controlplane.domain.identity import User
from controlplane.domain.principal import Principal, PrincipalKind
from controlplane.identity.administrators import Administrators
from controlplane.services.roles import RoleService
from controlplane.state.interface import Transaction
from limiquantix.errors import FailedPrecondition, Reason
from tests.support.access_scene import called_by
from tests.support.builders import START_OF_TIME, make_id
from tests.support.identity_scene import PASSWORD, ROOT, Clock, Plane

POWERFUL = "admins"
"""The group that covers everybody in this scene; it has no role."""


async def admin(plane: Plane, name: str) -> User:
    """Make a user who is admin of the cluster."""
    made = await plane.add_user(name, POWERFUL)
    await give(plane, f"user:{made.id}")
    return made


async def give(plane: Plane, subject: str, role_id: str = ADMIN) -> str:
    """Give a role at the cluster; returns the binding's id."""
    binding = Binding(make_id(), subject, subject, role_id, Place(), START_OF_TIME)

    async def work(tx: Transaction) -> Binding:
        await tx.begin_access_change()
        return await tx.insert_binding(binding)

    return (await plane.store.run(work)).id


def as_user(user: User) -> Principal:
    return Principal(PrincipalKind.USER, user.id, user.name, user.groups)


async def refused(work: Awaitable[object]) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        await work
    assert caught.value.reason == Reason.LAST_ADMIN
    assert "admin create" in caught.value.message


@pytest.mark.parametrize(
    "end",
    [lambda users, name: users.disable(ROOT, name), lambda users, name: users.delete(ROOT, name)],
    ids=["disabled", "deleted"],
)
async def test_last_admin_is_neither_disabled_nor_deleted(
    plane: Plane, end: Callable[[object, str], Awaitable[object]]
) -> None:
    await admin(plane, "ann")
    await admin(plane, "ben")
    await plane.add_user("carl")
    await end(plane.users, "carl")
    await end(plane.users, "ben")
    await refused(end(plane.users, "ann"))
    assert (await plane.users.get("ann")).may_act


async def test_admin_who_is_disabled_does_not_count(plane: Plane) -> None:
    await admin(plane, "ann")
    await admin(plane, "ben")
    await plane.users.disable(ROOT, "ben")
    await refused(plane.users.disable(ROOT, "ann"))
    await plane.users.enable(ROOT, "ben")
    await plane.users.disable(ROOT, "ann")


async def test_last_admin_by_a_group_stays_in_it(plane: Plane) -> None:
    await plane.add_user("ann", "ops")
    await plane.add_user("ben", "ops")
    await give(plane, "group:ops")
    await plane.users.update(ROOT, "ben", None, frozenset())
    await refused(plane.users.update(ROOT, "ann", None, frozenset({"other"})))
    assert (await plane.users.get("ann")).groups == {"ops"}
    await plane.users.update(ROOT, "ann", None, frozenset({"ops", "other"}))


async def test_last_binding_of_an_admin_stays(plane: Plane, clock: Clock) -> None:
    ann = await plane.add_user("ann", POWERFUL)
    ben = await plane.add_user("ben", POWERFUL)
    first, second_binding = await give(plane, f"user:{ann.id}"), await give(plane, f"user:{ben.id}")
    viewer = await give(plane, f"user:{ben.id}", VIEWER)
    roles = RoleService(plane.store, clock, _nobody)
    with called_by(ROOT):
        await roles.unbind(viewer)
        await plane.users.disable(ROOT, "ben")
        await refused(roles.unbind(first))
        await plane.users.enable(ROOT, "ben")
        await roles.unbind(first)
        await refused(roles.unbind(second_binding))


async def test_of_two_admins_who_disable_each_other_one_stays(plane: Plane, second: Plane) -> None:
    ann, ben = await admin(plane, "ann"), await admin(plane, "ben")
    for _ in range(5):
        outcomes = await asyncio.gather(
            plane.users.disable(as_user(ann), "ben"),
            second.users.disable(as_user(ben), "ann"),
            return_exceptions=True,
        )
        assert sorted(type(each).__name__ for each in outcomes) == ["FailedPrecondition", "User"], outcomes
        (left,) = [name for name in ("ann", "ben") if (await plane.users.get(name)).may_act]
        await plane.users.enable(ROOT, "ann" if left == "ben" else "ben")


async def test_role_of_one_admin_and_the_other_admin_do_not_go_at_once(
    plane: Plane, second: Plane, clock: Clock
) -> None:
    ann, _ = await plane.add_user("ann", POWERFUL), await admin(plane, "ben")
    roles = RoleService(plane.store, clock, _nobody)
    for _ in range(5):
        anns = await give(plane, f"user:{ann.id}")
        with called_by(ROOT):
            outcomes = await asyncio.gather(
                roles.unbind(anns), second.users.disable(ROOT, "ben"), return_exceptions=True
            )
        assert [type(each) for each in outcomes].count(FailedPrecondition) == 1, outcomes
        await plane.users.enable(ROOT, "ben")


async def test_command_on_the_machine_is_the_way_back(plane: Plane, clock: Clock) -> None:
    await admin(plane, "ann")
    await Administrators(plane.store, plane.passwords, clock).create("root", PASSWORD)
    await plane.users.disable(ROOT, "ann")
    await refused(plane.users.delete(ROOT, "root"))


async def _nobody(tx: Transaction, name: str) -> str | None:
    return None
