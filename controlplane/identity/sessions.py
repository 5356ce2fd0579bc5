"""Sessions: begun by a password or an issuer's token, gone on with by refresh tokens, ended."""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from controlplane.domain import identity_errors
from controlplane.domain.identity import RefreshToken, User, UserSession
from controlplane.domain.principal import Principal, PrincipalKind
from controlplane.identity import login_limits
from controlplane.identity.callers import KnownCallers
from controlplane.identity.oidc import VouchedFor
from controlplane.identity.passwords import Passwords, require_fit
from controlplane.identity.settings import IssuerSettings
from controlplane.identity.signing_keys import SigningKeys
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import AlreadyExists

REFRESH_LIFETIME: Final = timedelta(days=7)
REFRESH_PREFIX: Final = "lqr_"
_SECRET_BYTES: Final = 32
_KEPT: Final = timedelta(days=7)
"""How long what ended stays in the database."""

_MAY_NOT_LOG_IN: Final = "its bearer may not log in here; ask an administrator"

LOGGED_OUT: Final = "logged out"
REUSED: Final = "a refresh token was used twice"
PASSWORD_CHANGED: Final = "the password was changed"  # noqa: S105 - a reason, no password


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a client gets for a login."""

    access_token: str
    access_expires_at: datetime
    refresh_token: str
    refresh_expires_at: datetime
    user: User


@dataclass(frozen=True, slots=True)
class _Refreshed:
    """What a transaction that uses a refresh token found; without a user the session is over."""

    session_id: str = ""
    user: User | None = None
    changed_who_may_call: bool = False


@dataclass(frozen=True, slots=True)
class SessionService:
    """The use cases of sessions.

    Attributes:
        now: an aware clock.
    """

    store: Store
    passwords: Passwords
    keys: SigningKeys
    callers: KnownCallers
    now: Callable[[], datetime]

    async def login(self, name: str, password: str, origin: str) -> Tokens:
        """Begin a session with a password; takes as long, and says the same, whatever is wrong.

        Args:
            origin: from where, "ipv4:192.0.2.7:51234".

        Raises:
            Unauthenticated: LOGIN_FAILED.
            ResourceExhausted: there were too many failures, or too many log in at this moment.
        """
        this, wait_s = await self.store.run(lambda tx: login_limits.begin(tx, name, origin, self.now()))
        login_limits.refuse_for(wait_s)
        user = await self.store.read(lambda tx: tx.user_named(name))
        stored = user.password_hash if user is not None else ""
        is_right = await self.passwords.matches(password, stored)
        if not is_right or user is None or not user.may_act:
            raise identity_errors.login_failed()
        new_hash = await self.passwords.hash(password) if self.passwords.is_outdated(stored) else stored

        async def work(tx: Transaction) -> tuple[User, UserSession, str]:
            current = await tx.get_user(user.id)
            if current is None or not current.may_act or current.password_hash != stored:
                raise identity_errors.login_failed()
            if new_hash != stored:
                current = await tx.update_user(replace(current, password_hash=new_hash))
            await login_limits.succeeded(tx, this, self.now())
            return current, *await self._begin(tx, current, origin)

        return await self._tokens(*await self.store.run(work))

    async def exchange(self, issuer: IssuerSettings, who: VouchedFor, origin: str) -> Tokens:
        """Begin a session for somebody an issuer vouches for, who is made a user if the issuer's settings allow it.

        A token is good for one session, on whichever control plane.

        Raises:
            Unauthenticated: ID_TOKEN_REFUSED, the token began a session before; or, in the same words for one who is
                disabled, deleted, no user, or has the name of another, its bearer may not log in.
        """

        async def work(tx: Transaction) -> tuple[User, UserSession, str]:
            if await tx.get_refresh_token(who.token_digest) is not None:
                raise identity_errors.id_token_refused(issuer.name, "it was used before; get a new one")
            user = await self._user_of(tx, issuer, who)
            session, token = await self._begin(tx, user, origin)
            # Kept as long as the session is, which is longer than the token is good.
            await tx.insert_used_token(RefreshToken(who.token_digest, session.id, session.ends_at, self.now()))
            return user, session, token

        return await self._tokens(*await self.store.run(work))

    async def _user_of(self, tx: Transaction, issuer: IssuerSettings, who: VouchedFor) -> User:
        user = await tx.user_of_issuer(issuer.url, who.subject)
        if user is None:
            if not issuer.creates_users:
                raise identity_errors.id_token_refused(issuer.name, _MAY_NOT_LOG_IN)
            user = User(
                id=str(uuid.uuid4()),
                name=who.name,
                created_at=self.now(),
                display_name=who.display_name,
                issuer=issuer.url,
                issuer_subject=who.subject,
                groups=who.groups,
            )
            try:
                await tx.insert_user(user)
            except AlreadyExists as error:
                raise identity_errors.id_token_refused(issuer.name, _MAY_NOT_LOG_IN) from error
            return user
        if not user.may_act:
            raise identity_errors.id_token_refused(issuer.name, _MAY_NOT_LOG_IN)
        current = replace(user, groups=who.groups, display_name=who.display_name)
        return user if current == user else await tx.update_user(current)

    async def refresh(self, refresh_token: str) -> Tokens:
        """Go on with a session. A token that was used before ends it: somebody has a copy.

        Raises:
            Unauthenticated: SESSION_ENDED, or CREDENTIAL_REFUSED for what is no refresh token.
        """
        if not refresh_token.startswith(REFRESH_PREFIX):
            raise identity_errors.credential_refused()
        new_token, new_digest = _made_token()

        async def work(tx: Transaction) -> _Refreshed:
            return await self._use(tx, _digest(refresh_token), new_digest)

        found = await self.store.run(work)
        if found.changed_who_may_call:
            await self.callers.look()
        if found.user is None:
            raise identity_errors.session_ended()
        access_token, access_expires_at = await self.keys.sign(found.user.id, found.session_id)
        ends_at = self.now() + REFRESH_LIFETIME
        return Tokens(access_token, access_expires_at, new_token, ends_at, found.user)

    async def _use(self, tx: Transaction, digest: bytes, new_digest: bytes) -> _Refreshed:
        """Use a token; whatever comes of it is to be kept, so nothing is raised."""
        now = self.now()
        token = await tx.get_refresh_token(digest)
        session = await tx.get_session(token.session_id) if token is not None else None
        if token is None or session is None or session.revoked_at is not None:
            return _Refreshed()
        new = RefreshToken(new_digest, session.id, now + REFRESH_LIFETIME)
        if not await tx.use_refresh_token(token, new, now):
            return _Refreshed(changed_who_may_call=await tx.revoke_session(session.id, REUSED, now))
        user = await tx.get_user(session.user_id)
        is_over = user is None or not user.may_act or token.ends_at <= now
        return _Refreshed(session.id, None if is_over else user)

    async def logout(self, session_id: str) -> None:
        """End a session; one that has ended stays so."""
        await self.store.run(lambda tx: tx.revoke_session(session_id, LOGGED_OUT, self.now()))
        await self.callers.look()

    async def change_password(self, caller: Principal, current: str, new: str, origin: str) -> None:
        """Change one's own password and end all other sessions. Wrong ones count as failed logins.

        Raises:
            PermissionDenied: not a user who logged in calls.
            FailedPrecondition: the user has no password here.
            Unauthenticated: LOGIN_FAILED, the current password is wrong.
            InvalidArgument: the new one is not fit.
            ResourceExhausted: there were too many failures.
        """
        if caller.kind is not PrincipalKind.USER or not caller.session_id:
            raise identity_errors.needs_session()
        user = await self.store.read(lambda tx: tx.get_user(caller.id))
        if user is None or not user.is_local:
            raise identity_errors.user_state_forbids(
                caller.name, "change the password of", "another issuer keeps it; change it there"
            )
        require_fit(new, user.name, "new_password")
        this, wait_s = await self.store.run(lambda tx: login_limits.begin(tx, user.name, origin, self.now()))
        login_limits.refuse_for(wait_s)
        if not await self.passwords.matches(current, user.password_hash):
            raise identity_errors.login_failed()
        new_hash = await self.passwords.hash(new)

        async def work(tx: Transaction) -> None:
            now = self.now()
            held = await tx.get_user(user.id)
            if held is None or not held.may_act or held.password_hash != user.password_hash:
                raise identity_errors.login_failed()
            await tx.update_user(replace(held, password_hash=new_hash, password_changed_at=now))
            await tx.revoke_sessions(user.id, PASSWORD_CHANGED, now, but=caller.session_id)
            await login_limits.succeeded(tx, this, now)

        await self.store.run(work)
        await self.callers.look()

    async def forget(self) -> int:
        """Remove what ended long ago; returns how much."""
        now = self.now()
        return await self.store.run(lambda tx: tx.forget_identities(now - _KEPT, now - login_limits.KNOWN_FOR))

    async def _begin(self, tx: Transaction, user: User, origin: str) -> tuple[UserSession, str]:
        now = self.now()
        token, digest = _made_token()
        session = UserSession(str(uuid.uuid4()), user.id, now, now + REFRESH_LIFETIME, login_limits.address_of(origin))
        await tx.insert_session(session, RefreshToken(digest, session.id, session.ends_at))
        return session, token

    async def _tokens(self, user: User, session: UserSession, refresh_token: str) -> Tokens:
        access_token, access_expires_at = await self.keys.sign(user.id, session.id)
        return Tokens(access_token, access_expires_at, refresh_token, session.ends_at, user)


def _made_token() -> tuple[str, bytes]:
    token = REFRESH_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    return token, _digest(token)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
