"""Users: made, changed, disabled, deleted, and given new passwords, by those who may do at least as much."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from controlplane.domain import identity_errors
from controlplane.domain.identity import User, UserFilter
from controlplane.domain.principal import Principal, PrincipalKind
from controlplane.domain.query import Cursor, Page
from controlplane.identity.api_keys import Covers
from controlplane.identity.callers import KnownCallers
from controlplane.identity.last_admin import keeping_an_admin
from controlplane.identity.passwords import Passwords, made_password, require_fit
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import FieldViolation, InvalidArgument

DISABLED: Final = "the user was disabled"
DELETED: Final = "the user was deleted"
RESET: Final = "the password was reset"
REVOKED: Final = "an administrator ended all sessions"


@dataclass(frozen=True, slots=True)
class UserService:
    """The use cases of users; whoever is named is named by id or by name.

    Attributes:
        covers: who may do less than a user must neither become nor silence them.
        now: an aware clock.
    """

    store: Store
    passwords: Passwords
    callers: KnownCallers
    covers: Covers
    now: Callable[[], datetime]

    async def create(
        self, caller: Principal, name: str, display_name: str, groups: frozenset[str], password: str
    ) -> User:
        """Make a user.

        Raises:
            AlreadyExists: the name is taken, or was once.
            InvalidArgument: the password is not fit, or the name could be an id.
            PermissionDenied: a group may do more than the caller.
        """
        if is_id(name):
            raise InvalidArgument.from_violations([FieldViolation("name", "must not look like an id")])
        require_fit(password, name)
        now = self.now()
        user = User(str(uuid.uuid4()), name, now, display_name, groups=groups, password_changed_at=now)
        await self._require_covers(caller, user, "make")
        user = replace(user, password_hash=await self.passwords.hash(password))
        await self.store.run(lambda tx: tx.insert_user(user))
        await self.callers.look()
        return user

    async def get(self, named: str) -> User:
        """Read one.

        Raises:
            NotFound: there is none.
        """
        return await self.store.read(lambda tx: found(tx, named))

    async def list(self, wanted: UserFilter, after: Cursor | None, limit: int) -> Page[User]:
        """Read a page, oldest first."""
        return await self.store.read(lambda tx: tx.list_users(wanted, after, limit))

    async def update(
        self, caller: Principal, named: str, display_name: str | None, groups: frozenset[str] | None
    ) -> User:
        """Change what is said of a user and their groups; None leaves as it is.

        Raises:
            NotFound: there is none.
            FailedPrecondition: an issuer tells the user's groups, or nobody would be admin of the cluster any more.
            PermissionDenied: the user may do more than the caller, or would.
        """
        user = await self.get(named)
        if groups is not None and groups != user.groups and not user.is_local:
            raise identity_errors.user_state_forbids(user.name, "change groups of", f"{user.issuer} tells them")
        wanted = replace(
            user,
            display_name=user.display_name if display_name is None else display_name,
            groups=user.groups if groups is None else groups,
        )
        if wanted == user:
            return user
        await self._require_covers(caller, user, "change")
        await self._require_covers(caller, wanted, "give these groups to")
        return await self._changed(wanted)

    async def disable(self, caller: Principal, named: str) -> User:
        """Let a user do nothing any more, here at once and elsewhere within seconds. Idempotent.

        Raises:
            NotFound: there is none.
            FailedPrecondition: one cannot disable oneself, nor the last admin of the cluster.
            PermissionDenied: the user may do more than the caller.
        """
        user = await self._other(caller, named, "disable")
        if user.is_disabled:
            return user
        return await self._changed(replace(user, is_disabled=True), DISABLED)

    async def enable(self, caller: Principal, named: str) -> User:
        """Let a user log in again. Idempotent; raises as `disable`."""
        user = await self.get(named)
        if not user.is_disabled:
            return user
        await self._require_covers(caller, user, "enable")
        return await self._changed(replace(user, is_disabled=False))

    async def delete(self, caller: Principal, named: str) -> None:
        """Remove a user with sessions, keys and roles; the name stays taken. Raises as `disable`."""
        user = await self._other(caller, named, "delete")
        now = self.now()

        async def work(tx: Transaction) -> None:
            gone = replace(user, password_hash="", groups=frozenset(), deleted_at=now)
            await tx.update_user(gone)
            await tx.revoke_sessions(user.id, DELETED, now)
            await tx.revoke_api_keys(user.id, now)
            await tx.delete_bindings_of(f"user:{user.id}")

        await self.store.run(lambda tx: keeping_an_admin(tx, lambda: work(tx)))
        await self.callers.look()

    async def reset_password(self, caller: Principal, named: str, password: str | None) -> str:
        """Give a user a new password and end their sessions.

        Returns:
            The password that was made if none was given, else "".

        Raises:
            NotFound: there is none.
            FailedPrecondition: an issuer vouches for the user.
            InvalidArgument: the password is not fit.
            PermissionDenied: the user may do more than the caller.
        """
        user = await self.get(named)
        if not user.is_local:
            raise identity_errors.user_state_forbids(user.name, "reset the password of", f"{user.issuer} keeps it")
        if password is not None:
            require_fit(password, user.name, "new_password")
        await self._require_covers(caller, user, "reset the password of")
        made = "" if password is not None else made_password()
        new_hash = await self.passwords.hash(password if password is not None else made)
        await self._changed(replace(user, password_hash=new_hash, password_changed_at=self.now()), RESET)
        return made

    async def revoke_sessions(self, caller: Principal, named: str) -> None:
        """End all sessions of a user. Idempotent.

        Raises:
            NotFound: there is none.
            PermissionDenied: the user may do more than the caller.
        """
        user = await self.get(named)
        await self._require_covers(caller, user, "end the sessions of")
        await self.store.run(lambda tx: tx.revoke_sessions(user.id, REVOKED, self.now()))
        await self.callers.look()

    async def _other(self, caller: Principal, named: str, what: str) -> User:
        user = await self.get(named)
        if user.id in (caller.id, caller.owner_id):
            raise identity_errors.user_state_forbids(user.name, what, "that is you; somebody else has to do it")
        await self._require_covers(caller, user, what)
        return user

    async def _require_covers(self, caller: Principal, user: User, what: str) -> None:
        """Refuse a caller who may do less than the user; everybody covers themselves, their keys do not."""
        if caller.kind is PrincipalKind.USER and caller.id == user.id and caller.groups == user.groups:
            return
        as_user = Principal(PrincipalKind.USER, user.id, user.name, user.groups)
        if not await self.covers(caller, as_user):
            raise identity_errors.beyond_caller(user.name, what)

    async def _changed(self, user: User, ends_sessions: str = "") -> User:
        async def work(tx: Transaction) -> User:
            changed = await tx.update_user(user)
            if ends_sessions:
                await tx.revoke_sessions(user.id, ends_sessions, self.now())
            return changed

        changed = await self.store.run(lambda tx: keeping_an_admin(tx, lambda: work(tx)))
        await self.callers.look()
        return changed


async def found(tx: Transaction, named: str) -> User:
    """Read the user of that id or name.

    Raises:
        NotFound: there is none.
    """
    user = await tx.get_user(named) if is_id(named) else await tx.user_named(named)
    if user is None or user.deleted_at is not None:
        raise identity_errors.user_not_found(named)
    return user


def is_id(text: str) -> bool:
    """Whether a text is a user's id, and never a name."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
