"""The first administrator, and the way back for one who is locked out: done in the database, on the machine itself."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from controlplane.domain import identity_errors
from controlplane.domain.access import ADMIN, THE_CLUSTER, Binding
from controlplane.domain.identity import User
from controlplane.identity.passwords import Passwords, require_fit
from controlplane.identity.users import RESET, found, is_id
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import FieldViolation, InvalidArgument

MADE_BY: Final = "system:admin-command"
_NAME: Final = re.compile(r"[a-z][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Administrators:
    """The use cases of whoever may open the database.

    Attributes:
        now: an aware clock.
    """

    store: Store
    passwords: Passwords
    now: Callable[[], datetime]

    async def create(self, name: str, password: str) -> User:
        """Make a user who is admin of the cluster.

        Raises:
            AlreadyExists: the name is taken, or was once.
            InvalidArgument: the name or the password is not fit.
        """
        if not _NAME.fullmatch(name) or is_id(name):
            fault = "must begin with a letter, and have at most 64 of a-z, 0-9, dot, underscore and hyphen"
            raise InvalidArgument.from_violations([FieldViolation("name", fault)])
        require_fit(password, name)
        now = self.now()
        hashed = await self.passwords.hash(password)
        user = User(str(uuid.uuid4()), name, now, password_hash=hashed, password_changed_at=now)
        as_admin = Binding(
            str(uuid.uuid4()), f"user:{user.id}", f"user:{name}", ADMIN, THE_CLUSTER, now, created_by=MADE_BY
        )

        async def work(tx: Transaction) -> None:
            await tx.begin_access_change()
            await tx.insert_user(user)
            await tx.insert_binding(as_admin)

        await self.store.run(work)
        return user

    async def reset(self, name: str, password: str) -> None:
        """Give a user a new password, enable them, and end their sessions. Their roles stay what they are.

        Raises:
            NotFound: there is none of that name.
            FailedPrecondition: an issuer vouches for the user.
            InvalidArgument: the password is not fit.
        """
        require_fit(password, name)
        hashed = await self.passwords.hash(password)

        async def work(tx: Transaction) -> None:
            user, now = await found(tx, name), self.now()
            if not user.is_local:
                raise identity_errors.user_state_forbids(name, "reset the password of", f"{user.issuer} keeps it")
            await tx.update_user(replace(user, password_hash=hashed, is_disabled=False, password_changed_at=now))
            await tx.revoke_sessions(user.id, RESET, now)

        await self.store.run(work)
