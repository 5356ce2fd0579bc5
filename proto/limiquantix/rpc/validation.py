"""Check a request against the protovalidate rules of its .proto file.

The rules stand in the contract, so a client in any language can check the same things before it calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import protovalidate
from google.protobuf.message import Message

from limiquantix.errors import FieldViolation, InvalidArgument
from limiquantix.rpc.list_limits import overlong_lists

Check = Callable[[Message], Iterable[FieldViolation]]

_validator = protovalidate.Validator()


def _field_path(violation: protovalidate.Violation) -> str:
    field = violation.proto.field
    if field is None:
        return ""
    path = ""
    for element in field.elements:
        path += ("." if path else "") + element.field_name
        if element.subscript is not None:
            key = element.subscript.value
            path += f"[{key}]" if isinstance(key, int) else f'["{key}"]'
    return path


def violations_of(request: Message) -> list[FieldViolation]:
    """List every rule the message breaks, in field order; empty if it is sound."""
    return [
        FieldViolation(_field_path(v), v.proto.message or v.proto.rule_id)
        for v in _validator.collect_violations(request)
    ]


def require_bounded(request: Message, found: Sequence[FieldViolation] = ()) -> None:
    """Raise `InvalidArgument` if a list of the request is too long; first of all checks, since it bounds their cost.

    Only then are faults not told all at once: `found`, and the lists, but not what is wrong elsewhere.
    """
    overlong = list(overlong_lists(request))
    if overlong:
        raise InvalidArgument.from_violations([*found, *overlong])


def validate(request: Message, checks: Mapping[type[Message], Check], found: Sequence[FieldViolation] = ()) -> None:
    """Raise `InvalidArgument` with every fault of the request.

    Args:
        checks: rules that a .proto file cannot state, by request type; their findings join those of the contract.
        found: faults known already, reported first. Their fields are missing in the message, which is not told again.
    """
    violations = violations_of(request)
    check = checks.get(type(request))
    if check is not None:
        violations.extend(check(request))
    if found:
        known = {violation.field for violation in found}
        violations = [*found, *(violation for violation in violations if violation.field not in known)]
    if violations:
        raise InvalidArgument.from_violations(violations)
