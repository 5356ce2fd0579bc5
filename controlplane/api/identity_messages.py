"""Users, keys and tokens as the API shows them."""

from __future__ import annotations

from controlplane.domain.documents import timestamp
from controlplane.domain.identity import User
from controlplane.identity.api_keys import OwnedKey
from controlplane.identity.sessions import Tokens
from limiquantix.compute.v1 import api_key_service_pb2, auth_service_pb2, user_pb2


def user_message(user: User) -> user_pb2.User:
    """Encode a user; the issuer's name stands in theirs."""
    message = user_pb2.User(
        id=user.id,
        name=user.name,
        display_name=user.display_name,
        groups=sorted(user.groups),
        is_disabled=user.is_disabled,
        issuer="" if user.is_local else user.name.rpartition("@")[2],
        created_at=timestamp(user.created_at),
    )
    if user.password_changed_at is not None:
        message.password_changed_at.CopyFrom(timestamp(user.password_changed_at))
    return message


def tokens_message(tokens: Tokens) -> auth_service_pb2.SessionTokens:
    """Encode what a client gets for a login."""
    return auth_service_pb2.SessionTokens(
        access_token=tokens.access_token,
        access_expires_at=timestamp(tokens.access_expires_at),
        refresh_token=tokens.refresh_token,
        refresh_expires_at=timestamp(tokens.refresh_expires_at),
        user=user_message(tokens.user),
    )


def api_key_message(owned: OwnedKey) -> api_key_service_pb2.ApiKey:
    """Encode a key."""
    key = owned.key
    message = api_key_service_pb2.ApiKey(
        id=key.id,
        name=key.name,
        owner_id=key.owner_id,
        owner_name=owned.owner_name,
        project_ids=sorted(key.scope.project_ids),
        permissions=sorted(key.scope.permissions),
        created_at=timestamp(key.created_at),
        expires_at=timestamp(key.expires_at),
    )
    for name, moment in (("last_used_at", key.last_used_at), ("revoked_at", key.revoked_at)):
        if moment is not None:
            getattr(message, name).CopyFrom(timestamp(moment))
    return message
