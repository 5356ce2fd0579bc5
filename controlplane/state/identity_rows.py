"""Statements about people and programs; each runs in an open transaction and blocks. Contracts: `identity_interface`.

Whatever changes who may call counts `identity_head` up, here, so that no caller can forget it. Its row is locked until
the transaction ends, so a revision that is seen tells of all smaller ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, Table, and_, delete, insert, literal, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from controlplane.domain import errors, identity_errors
from controlplane.domain.identity import (
    ApiKey,
    LoginFailures,
    RefreshToken,
    SigningKey,
    User,
    UserFilter,
    UserSession,
    WhoMayCall,
)
from controlplane.domain.principal import Scope
from controlplane.domain.query import Cursor, Page
from controlplane.state import queries
from controlplane.state.faults import Constraint, broken_constraint
from controlplane.state.prepared import StoredRow
from controlplane.state.queries import Condition
from controlplane.state.schema_base import UtcMicroseconds
from controlplane.state.schema_security import (
    api_keys,
    identity_head,
    login_failures,
    refresh_tokens,
    signing_keys,
    user_sessions,
    users,
)

_SESSION_FIELDS = tuple(field.name for field in dataclasses.fields(UserSession))
_TOKEN_FIELDS = tuple(field.name for field in dataclasses.fields(RefreshToken))
_SIGNING_FIELDS = tuple(field.name for field in dataclasses.fields(SigningKey))
_FAILURE_FIELDS = tuple(field.name for field in dataclasses.fields(LoginFailures))


def revision(connection: Connection) -> int:
    """How often it changed who may call."""
    return int(connection.execute(select(identity_head.c.revision)).scalar_one())


def _count_up(connection: Connection, changed: Table | None = None, condition: Condition | None = None) -> None:
    """Count the revision up, and note it in the rows that changed."""
    counted = update(identity_head).values(revision=identity_head.c.revision + 1).returning(identity_head.c.revision)
    new = connection.execute(counted).scalar_one()
    if changed is not None and condition is not None:
        connection.execute(update(changed).where(condition).values(revision=new))


def who_may_call(connection: Connection, after_revision: int, revoked_since: datetime) -> WhoMayCall:
    """Read what changed after a revision."""
    revoked = select(user_sessions.c.id).where(user_sessions.c.revoked_at >= revoked_since)
    changed_users = select(users).where(users.c.revision > after_revision)
    changed_keys = select(api_keys).where(api_keys.c.revision > after_revision)
    return WhoMayCall(
        revision=revision(connection),
        users=tuple(_user(row) for row in connection.execute(changed_users)),
        revoked_session_ids=frozenset(row.id for row in connection.execute(revoked)),
        api_keys=tuple(_api_key(row) for row in connection.execute(changed_keys)),
    )


# -- users


def insert_user(connection: Connection, user: User) -> None:
    """Add a user."""
    taken = connection.execute(select(users.c.deleted_at).where(users.c.name == user.name)).first()
    if taken is not None:
        raise identity_errors.user_name_taken(user.name, was_deleted=taken.deleted_at is not None)
    try:
        connection.execute(insert(users), [_user_values(user)])
    except IntegrityError as error:
        if broken_constraint(error) is Constraint.CHECK:
            raise
        raise errors.concurrent_change("user", user.id) from error
    _count_up(connection, users, users.c.id == user.id)


def find_user(connection: Connection, by: Mapping[str, str], *, to_change: bool) -> User | None:
    """Read the one with these values."""
    query: Select[Any] = select(users).where(*(users.c[name] == value for name, value in by.items()))
    row = connection.execute(query.with_for_update() if to_change else query).first()
    return None if row is None else _user(row)


def update_user(connection: Connection, user: User) -> User:
    """Write a user who was read before."""
    changed = dataclasses.replace(user, version=user.version + 1)
    same = update(users).where(users.c.id == user.id, users.c.version == user.version)
    if connection.execute(same.values(_user_values(changed))).rowcount == 0:
        raise errors.concurrent_change("user", user.id)
    _count_up(connection, users, users.c.id == user.id)
    return changed


def list_users(connection: Connection, wanted: UserFilter, after: Cursor | None, limit: int) -> Page[User]:
    """Read a page, oldest first."""
    conditions: list[Condition] = [users.c.deleted_at.is_(None)]
    if not wanted.include_disabled:
        conditions.append(users.c.is_disabled.is_(False))
    if not wanted.group:
        total_count = queries.count(connection, users, conditions)
        query = select(users).where(*conditions, *_after(users, after)).order_by(users.c.created_at, users.c.id)
        found = [_user(row) for row in connection.execute(query.limit(limit + 1))]
        return _page(found, limit, total_count)
    # Groups are lists in JSON, which the two databases ask in different ways; users are few.
    query = select(users).where(*conditions).order_by(users.c.created_at, users.c.id)
    members = [user for row in connection.execute(query) if wanted.group in (user := _user(row)).groups]
    later = [user for user in members if after is None or (user.created_at, user.id) > (after.created_at, after.id)]
    return _page(later[: limit + 1], limit, len(members))


# -- sessions


def insert_session(connection: Connection, session: UserSession, token: RefreshToken) -> None:
    """Add a session and its first refresh token."""
    connection.execute(insert(user_sessions), [dataclasses.asdict(session)])
    connection.execute(insert(refresh_tokens), [dataclasses.asdict(token)])


def get_session(connection: Connection, session_id: str) -> UserSession | None:
    """Read one."""
    row = connection.execute(select(user_sessions).where(user_sessions.c.id == session_id)).first()
    return None if row is None else UserSession(**_fields(row, _SESSION_FIELDS))


def get_refresh_token(connection: Connection, digest: bytes) -> RefreshToken | None:
    """Read one."""
    row = connection.execute(select(refresh_tokens).where(refresh_tokens.c.digest == digest)).first()
    return None if row is None else RefreshToken(**_fields(row, _TOKEN_FIELDS))


def insert_used_token(connection: Connection, token: RefreshToken) -> None:
    """Remember a token that began a session; one that another process remembers is Aborted."""
    try:
        connection.execute(insert(refresh_tokens), [dataclasses.asdict(token)])
    except IntegrityError as error:
        raise errors.concurrent_change("session", token.session_id) from error


def use_refresh_token(connection: Connection, used: RefreshToken, new: RefreshToken, at: datetime) -> bool:
    """Put a new token in the place of one that nobody used."""
    unused = update(refresh_tokens).where(refresh_tokens.c.digest == used.digest, refresh_tokens.c.used_at.is_(None))
    if connection.execute(unused.values(used_at=at)).rowcount == 0:
        return False
    connection.execute(insert(refresh_tokens), [dataclasses.asdict(new)])
    longer = update(user_sessions).where(user_sessions.c.id == new.session_id)
    connection.execute(longer.values(ends_at=new.ends_at))
    return True


def revoke_session(connection: Connection, session_id: str, because: str, at: datetime) -> bool:
    """End one session."""
    return _revoke(connection, [user_sessions.c.id == session_id], because, at) > 0


def revoke_sessions(connection: Connection, user_id: str, because: str, at: datetime, but: str) -> int:
    """End the sessions of a user."""
    return _revoke(connection, [user_sessions.c.user_id == user_id, user_sessions.c.id != but], because, at)


def _revoke(connection: Connection, conditions: Sequence[Condition], because: str, at: datetime) -> int:
    going_on = update(user_sessions).where(*conditions, user_sessions.c.revoked_at.is_(None))
    count = connection.execute(going_on.values(revoked_at=at, revoked_because=because)).rowcount
    if count:
        _count_up(connection)
    return count


# -- API keys


def insert_api_key(connection: Connection, key: ApiKey) -> None:
    """Add a key."""
    values = dataclasses.asdict(key) | {
        "project_ids": sorted(key.scope.project_ids),
        "permissions": sorted(key.scope.permissions),
        "revision": 0,
    }
    del values["scope"]
    connection.execute(insert(api_keys), [values])
    _count_up(connection, api_keys, api_keys.c.id == key.id)


def get_api_key(connection: Connection, key_id: str) -> ApiKey | None:
    """Read one."""
    row = connection.execute(select(api_keys).where(api_keys.c.id == key_id)).first()
    return None if row is None else _api_key(row)


def revoke_api_keys(connection: Connection, by: Mapping[str, str], at: datetime) -> int:
    """End those with these values."""
    chosen = and_(*(api_keys.c[name] == value for name, value in by.items()))
    going_on = update(api_keys).where(api_keys.c.revoked_at.is_(None), chosen)
    count = connection.execute(going_on.values(revoked_at=at)).rowcount
    if count:
        _count_up(connection, api_keys, chosen)
    return count


def note_api_keys_used(connection: Connection, used_at: Mapping[str, datetime]) -> None:
    """Note when keys were last used, in the order of their ids, so that two processes do not wait for each other."""
    for key_id, moment in sorted(used_at.items()):
        earlier = or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at < moment)
        connection.execute(update(api_keys).where(api_keys.c.id == key_id, earlier).values(last_used_at=moment))


def count_api_keys(connection: Connection, owner_id: str) -> int:
    """How many keys of a user are not revoked."""
    return queries.count(connection, api_keys, [api_keys.c.owner_id == owner_id, api_keys.c.revoked_at.is_(None)])


def list_api_keys(connection: Connection, owner_id: str, after: Cursor | None, limit: int) -> Page[ApiKey]:
    """Read a page, oldest first."""
    conditions: list[Condition] = [api_keys.c.revoked_at.is_(None)]
    if owner_id:
        conditions.append(api_keys.c.owner_id == owner_id)
    total_count = queries.count(connection, api_keys, conditions)
    query = select(api_keys).where(*conditions, *_after(api_keys, after)).order_by(api_keys.c.created_at, api_keys.c.id)
    return _page([_api_key(row) for row in connection.execute(query.limit(limit + 1))], limit, total_count)


# -- signing keys and failed logins


def all_signing_keys(connection: Connection) -> list[SigningKey]:
    """Read all, newest first."""
    rows = connection.execute(select(signing_keys).order_by(signing_keys.c.number.desc()))
    return [SigningKey(**_fields(row, _SIGNING_FIELDS)) for row in rows]


def insert_signing_key(connection: Connection, key: SigningKey) -> None:
    """Add the next one; another process's is Aborted, and who comes again reads that one."""
    try:
        connection.execute(insert(signing_keys), [dataclasses.asdict(key)])
    except IntegrityError as error:
        raise errors.concurrent_change("signing key", str(key.number)) from error


def get_failures(connection: Connection, keys: Sequence[str], *, to_change: bool) -> list[LoginFailures]:
    """Read counts, in the order of their keys."""
    query = select(login_failures).where(login_failures.c.key.in_(sorted(keys))).order_by(login_failures.c.key)
    rows = connection.execute(query.with_for_update() if to_change else query)
    return [LoginFailures(**_fields(row, _FAILURE_FIELDS)) for row in rows]


def write_failures(connection: Connection, counted: Sequence[LoginFailures], before: Sequence[LoginFailures]) -> None:
    """Write counts in the place of those that were read; one that others wrote meanwhile is Aborted.

    Rows that were read are locked. Those that were not there cannot be, so they are inserted and never overwritten.
    """
    known = {each.key for each in before}
    for each in sorted(counted, key=lambda failures: failures.key):
        same = login_failures.c.key == each.key
        if each.key in known:
            changed = update(login_failures).where(same).values(dataclasses.asdict(each))
            connection.execute(changed if each.count else delete(login_failures).where(same))
        elif each.count:
            try:
                connection.execute(insert(login_failures), [dataclasses.asdict(each)])
            except IntegrityError as error:
                raise errors.concurrent_change("count of logins", each.key) from error


def forget(connection: Connection, before: datetime, known_before: datetime) -> int:
    """Remove what ended before; that somebody logged in (a count below 0) stays for longer."""
    logins = login_failures.c
    ended = (
        delete(user_sessions).where(or_(user_sessions.c.ends_at < before, user_sessions.c.revoked_at < before)),
        delete(login_failures).where(
            or_(logins.last_at < known_before, and_(logins.last_at < before, logins.count > 0))
        ),
        delete(signing_keys).where(signing_keys.c.verifies_until < before),
        delete(api_keys).where(or_(api_keys.c.expires_at < before, api_keys.c.revoked_at < before)),
    )
    return sum(connection.execute(statement).rowcount for statement in ended)


# -- rows and records


def _user_values(user: User) -> dict[str, Any]:
    values = dataclasses.asdict(user)
    return values | {
        "revision": 0,  # given when it is known, a moment later
        "groups": sorted(user.groups),
        "issuer": user.issuer or None,
        "issuer_subject": user.issuer_subject or None,
    }


def _user(row: StoredRow) -> User:
    return User(
        id=row.id,
        name=row.name,
        created_at=row.created_at,
        display_name=row.display_name,
        password_hash=row.password_hash,
        issuer=row.issuer or "",
        issuer_subject=row.issuer_subject or "",
        groups=frozenset(row.groups),
        is_disabled=row.is_disabled,
        password_changed_at=row.password_changed_at,
        deleted_at=row.deleted_at,
        version=row.version,
    )


def _api_key(row: StoredRow) -> ApiKey:
    return ApiKey(
        id=row.id,
        owner_id=row.owner_id,
        name=row.name,
        digest=row.digest,
        created_at=row.created_at,
        expires_at=row.expires_at,
        scope=Scope(frozenset(row.project_ids), frozenset(row.permissions)),
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
    )


def _fields(row: StoredRow, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}


def _after(table: Any, after: Cursor | None) -> list[Condition]:
    if after is None:
        return []
    position = tuple_(literal(after.created_at, UtcMicroseconds), literal(after.id))
    return [tuple_(table.c.created_at, table.c.id) > position]


def _page(found: Sequence[Any], limit: int, total_count: int) -> Page[Any]:
    items = found[:limit]
    more = len(found) > limit
    return Page(items, Cursor(items[-1].created_at, items[-1].id) if more else None, total_count)
