"""Refusals about people, programs and what they call with, one function each.

None says more than its reader may know: whoever is not recognised learns nothing of who else there is.
"""

from __future__ import annotations

from limiquantix.errors import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    Reason,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)


def login_failed() -> Unauthenticated:
    """One answer for a name that is not there, a wrong password, and a user who is disabled."""
    return Unauthenticated(Reason.LOGIN_FAILED, "the name or the password is wrong, or the user is disabled")


def too_many_logins(wait_s: float) -> ResourceExhausted:
    """Tries came too fast, for one name or from one address."""
    return ResourceExhausted(
        Reason.TOO_MANY_LOGINS,
        f"too many failed logins; try again in {wait_s:.0f} s",
        metadata={"wait_s": f"{wait_s:.0f}"},
        retry_after_s=wait_s,
    )


def passwords_busy(wait_s: float) -> ResourceExhausted:
    """More passwords have to be compared than this process does at once."""
    return ResourceExhausted(
        Reason.TOO_MANY_LOGINS, "many log in at this moment; try again in a moment", retry_after_s=wait_s
    )


def credential_refused() -> Unauthenticated:
    """A token or key that was never good, or is no longer; which of these is not told."""
    return Unauthenticated(
        Reason.CREDENTIAL_REFUSED, "the token or API key is not valid; log in again, or make a new key"
    )


def credential_expired(what: str) -> Unauthenticated:
    """A token or key that was good once."""
    return Unauthenticated(Reason.CREDENTIAL_EXPIRED, f"the {what} has expired; get a new one")


def session_ended() -> Unauthenticated:
    """The session of a token is over: logged out, revoked, or its user may no longer act."""
    return Unauthenticated(Reason.SESSION_ENDED, "the session has ended; log in again")


def identities_stale(age_s: float) -> Unavailable:
    """Who may call was read too long ago to be trusted."""
    return Unavailable(
        Reason.STATE_UNAVAILABLE,
        f"who may call was last read {age_s:.0f} s ago, and the database does not answer; try again in a moment",
        retry_after_s=1.0,
    )


def user_not_found(name: str) -> NotFound:
    """No user has that id or name."""
    return NotFound(Reason.USER_NOT_FOUND, f"user {name} does not exist", metadata={"user": name})


def user_name_taken(name: str, *, was_deleted: bool = False) -> AlreadyExists:
    """Names are never given twice."""
    hint = "a user who was deleted had it, and records name people by it; " if was_deleted else ""
    return AlreadyExists(
        Reason.USER_NAME_TAKEN,
        f"the user name {name!r} is taken: {hint}choose another name",
        metadata={"name": name},
    )


def user_state_forbids(name: str, what: str, why: str) -> FailedPrecondition:
    """It makes no sense for this user."""
    return FailedPrecondition(Reason.USER_STATE_FORBIDS, f"cannot {what} user {name}: {why}", metadata={"user": name})


def needs_session() -> PermissionDenied:
    """A program's key, or a machine, asks for what only a person who logged in may do."""
    return PermissionDenied(
        Reason.CALLER_UNSUITED, "only a user who logged in may do this; API keys and machines may not"
    )


def api_key_not_found(key_id: str) -> NotFound:
    """No API key has that id, or the caller may not know that one has."""
    return NotFound(Reason.API_KEY_NOT_FOUND, f"API key {key_id} does not exist", metadata={"api_key_id": key_id})


def too_many_api_keys(limit: int) -> ResourceExhausted:
    """One user has as many as anybody may have."""
    return ResourceExhausted(
        Reason.TOO_MANY_API_KEYS,
        f"a user has at most {limit} API keys; revoke one that is no longer used",
        metadata={"limit": str(limit)},
    )


def issuer_not_found(name: str) -> NotFound:
    """No issuer of that name is configured."""
    return NotFound(
        Reason.ISSUER_NOT_FOUND,
        f"no issuer {name!r} is configured; the control plane's configuration lists them under identity.issuers",
        metadata={"issuer": name},
    )


def issuer_unavailable(name: str, detail: str) -> Unavailable:
    """An issuer's keys cannot be read."""
    return Unavailable(
        Reason.ISSUER_UNAVAILABLE,
        f"issuer {name} cannot be asked for its keys: {detail}",
        metadata={"issuer": name},
        retry_after_s=5.0,
    )


def id_token_refused(name: str, why: str) -> Unauthenticated:
    """An issuer's token does not hold; its bearer may know why."""
    return Unauthenticated(
        Reason.ID_TOKEN_REFUSED, f"the ID token of issuer {name} is refused: {why}", metadata={"issuer": name}
    )


def beyond_caller(name: str, what: str) -> PermissionDenied:
    """A user may do more than who wants to change them."""
    return PermissionDenied(
        Reason.PERMISSION_MISSING,
        f"cannot {what} user {name}, who may do more than you may; somebody who may as much has to do it",
        metadata={"user": name},
    )
