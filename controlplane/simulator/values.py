"""Kinds of values in files: sizes, durations, names, numbers with bounds; and messages of the API in its own JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from controlplane.domain.quantities import parse_age_s, parse_bytes

MAX_BYTES = 2**60
MAX_CPU_COUNT = 1_000_000
_MessageT = TypeVar("_MessageT", bound=Message)


class Entry(BaseModel):
    """Something in a file: every key is known, and none is changed later."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _text_to(parse: Callable[[str], int], example: str) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, str):
            return parse(value)
        raise ValueError(f"is not a text with a unit such as {example}")

    return read


def _whole(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("is not a number")
    return value


Bytes = Annotated[int, BeforeValidator(_text_to(parse_bytes, "4GiB")), Field(ge=0, le=MAX_BYTES)]
"""A size with its unit, such as 4GiB."""
Seconds = Annotated[int, BeforeValidator(_text_to(parse_age_s, "90s or 10m")), Field(ge=0, le=10 * 365 * 86_400)]
"""A duration with its unit, such as 90s or 10m."""
Count = Annotated[int, Field(strict=True, ge=0, le=MAX_CPU_COUNT)]
Number = Annotated[float, BeforeValidator(_whole), Field(ge=0, le=1e9, allow_inf_nan=False)]
Percent = Annotated[float, BeforeValidator(_whole), Field(ge=0, le=100, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[^\x00-\x1f\x7f]+$")]
LabelKey = Annotated[str, Field(min_length=1, max_length=128)]
LabelValue = Annotated[str, Field(max_length=255)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=64)]
Document = dict[str, Any]
"""A message of the API in its JSON form."""


def read_message(document: Document, message: _MessageT) -> _MessageT:
    """Fill a message of the API with what a file says.

    Raises:
        ValueError: a field is unknown or does not take that value.
    """
    try:
        ParseDict(document, message, max_recursion_depth=40)
    except (ParseError, TypeError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    return message
