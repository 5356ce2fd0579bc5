"""What a refusal may tell its caller: why no node takes a VM names every host, and not everybody sees hosts."""

from __future__ import annotations

from collections.abc import Mapping

from controlplane.domain.access import Permission, Permissions
from controlplane.domain.errors import PER_NODE
from limiquantix.errors import ApiError


def told_metadata(metadata: Mapping[str, str], at_cluster: Permissions | None) -> dict[str, str]:
    """Leave out what is said of single nodes, unless the caller sees nodes; how many there are stays in the message.

    Args:
        at_cluster: what the caller may do at the cluster; None for everything.
    """
    if at_cluster is None or Permission.NODE_READ in at_cluster:
        return dict(metadata)
    return {key: value for key, value in metadata.items() if not key.startswith(PER_NODE)}


def told(error: ApiError, at_cluster: Permissions) -> ApiError:
    """Return the error as its caller may get it: itself, or another one that says less."""
    metadata = told_metadata(error.metadata, at_cluster)
    if len(metadata) == len(error.metadata):
        return error
    return type(error)(
        error.reason,
        error.message,
        metadata=metadata,
        violations=error.violations,
        retry_after_s=error.retry_after_s,
    )
