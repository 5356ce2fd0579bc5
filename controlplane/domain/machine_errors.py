"""Refusals of machines: who may not join, and whose certificate is not good."""

from __future__ import annotations

from limiquantix.errors import (
    AlreadyExists,
    FieldViolation,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Reason,
    Unauthenticated,
    Unavailable,
)


def join_refused() -> PermissionDenied:
    """Refuse a token: one answer to unknown, used, expired, revoked and mistyped ones, which tells nothing of any."""
    return PermissionDenied(
        Reason.JOIN_REFUSED,
        "the join token is not good: it may have been used, have expired or be for another host; make a new one with "
        "`limiquantix node token create`",
    )


def join_token_not_found(token_id: str) -> NotFound:
    """There is no such token that could still be used."""
    return NotFound(
        Reason.JOIN_TOKEN_NOT_FOUND,
        f"there is no unused join token {token_id}",
        metadata={"token_id": token_id},
    )


def hostname_taken(hostname: str) -> AlreadyExists:
    """Another host joined with that name."""
    return AlreadyExists(
        Reason.HOSTNAME_TAKEN,
        f"host {hostname} joined already; let it join again with `limiquantix node token create --node {hostname}`, or "
        "decommission its node first",
        metadata={"hostname": hostname},
    )


def never_joined(node_id: str) -> NotFound:
    """No host joined as that node."""
    return NotFound(Reason.NODE_NOT_FOUND, f"no host joined as node {node_id}", metadata={"node_id": node_id})


def no_certificate() -> Unauthenticated:
    """The port of hosts was called by something that is no machine of this cluster."""
    return Unauthenticated(
        Reason.CERTIFICATE_REFUSED,
        "this port is for hosts of the cluster, which show a certificate; join first (`limiquantix-node join TOKEN`)",
    )


def certificate_refused(node_id: str) -> Unauthenticated:
    """The certificate was revoked, or its host was forgotten."""
    return Unauthenticated(
        Reason.CERTIFICATE_REFUSED,
        f"the certificate of node {node_id} is not good any more; let the host join again with a new join token",
        metadata={"node_id": node_id},
    )


def not_of_this_node(method: str, what: str, node_id: str) -> PermissionDenied:
    """A host spoke for another one, or of a VM that is not on it."""
    return PermissionDenied(
        Reason.NOT_OF_THIS_NODE,
        f"{method}: {what} is not node {node_id}'s, whose certificate was shown",
        metadata={"node_id": node_id},
    )


def request_refused(why: str) -> InvalidArgument:
    """The request for a certificate is none that can be signed."""
    return InvalidArgument.from_violations([FieldViolation("certificate_request", why)])


def not_registered(node_id: str) -> NotFound:
    """The host joined, and did not register yet."""
    return NotFound(
        Reason.NODE_NOT_FOUND,
        f"node {node_id} did not register yet, so it is not known at which address others reach it",
        metadata={"node_id": node_id},
    )


def address_taken(address: str, hostname: str) -> AlreadyExists:
    """Two hosts say that they are reached at one address; neither gets a certificate for it."""
    return AlreadyExists(
        Reason.HOSTNAME_TAKEN,
        f"{address} is an address of node {hostname} too; set migration.address of one of them to its own",
        metadata={"address": address, "hostname": hostname},
    )


def revoked_just_now(node_id: str, seconds: float) -> Unavailable:
    """What were issued now could not be told from what was revoked."""
    return Unavailable(
        Reason.CERTIFICATE_REFUSED,
        f"certificates of node {node_id} were revoked a moment ago; the next one for moving VMs is issued in "
        f"{seconds:.0f} s",
        metadata={"node_id": node_id},
    )
