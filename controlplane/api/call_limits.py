"""The control plane's limits of calls.

They follow from the contract. A request that cannot be large is not let in when it is: what the rules in the .proto
files allow its fields to be counts, not what a message could hold. A method that changes something waits for its
operation, which may copy disks; all others are a matter of milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor

from limiquantix.rpc.limits import MAX_MESSAGE_BYTES, CallLimit, TableOfLimits
from limiquantix.rpc.list_limits import rules_of

READ_S: Final = 60.0
CHANGE_S: Final = 3_600.0
"""Whoever waits longer is told so; the operation goes on, and the same request id waits for it again."""

SMALL_BYTES: Final = 64 * 2**10
"""For requests of a few ids, names and numbers: written as JSON, with fields that nobody knows."""
LARGE_BYTES: Final = 4 * 2**20
"""For requests with specs, scripts or contents of files, whose parts the contract bounds to 1 MiB each."""

_READS: Final = ("Get", "List", "Watch", "Stream", "Explain", "Plan", "Estimate", "Announce")
_WITH_OPERATIONS: Final = frozenset({"VMService", "NodeService", "OperationService", "BalancingService"})
"""Services whose changes are operations; those of all others are done at once."""
_REPORTS: Final = frozenset(
    {"RegisterNode", "UpdateHeartbeat", "SyncFullState", "NotifyVMChange", "NotifyStorageChange"}
)
"""Of hosts: what they say grows with their VMs."""
_MAX_SMALL_TEXT: Final = 4_096
_MAX_SMALL_LIST: Final = 128


def limits_of(services: Iterable[ServiceDescriptor]) -> TableOfLimits:
    """Make the table of all methods of these services."""
    table = {
        f"/{service.full_name}/{method.name}": limit_of(method) for service in services for method in service.methods
    }
    return TableOfLimits(CallLimit(READ_S, SMALL_BYTES), table)


def limit_of(method: MethodDescriptor) -> CallLimit:
    """Say what one method gets."""
    if method.name in _REPORTS:
        return CallLimit(READ_S, MAX_MESSAGE_BYTES)
    waits = method.containing_service.name in _WITH_OPERATIONS and not method.name.startswith(_READS)
    deadline_s = CHANGE_S if waits else READ_S
    return CallLimit(deadline_s, SMALL_BYTES if _is_small(method.input_type, frozenset()) else LARGE_BYTES)


def _is_small(message: Descriptor, within: frozenset[str]) -> bool:
    """Tell whether all that the rules let a message hold is short; `within` ends types that hold themselves."""
    if message.full_name in within:
        return False
    deeper = within | {message.full_name}
    return all(_is_small_field(field, deeper) for field in message.fields)


def _is_small_field(field: FieldDescriptor, within: frozenset[str]) -> bool:
    rules = rules_of(field)
    if field.message_type is not None and not field.message_type.full_name.startswith("google.protobuf."):
        return not field.is_repeated and _is_small(field.message_type, within)
    if field.is_repeated:
        return rules is not None and 0 < rules.repeated.max_items <= _MAX_SMALL_LIST and _is_short(rules.repeated.items)
    return field.cpp_type != FieldDescriptor.CPPTYPE_STRING or (rules is not None and _is_short(rules))


def _is_short(rules: Any) -> bool:
    """Tell whether the rules bound a text."""
    text = rules.string
    return bool(text.uuid or text.ip or text.host_and_port or 0 < text.max_len <= _MAX_SMALL_TEXT)
