from __future__ import annotations

import base64

from hypothesis import given
from hypothesis import strategies as st

from controlplane.cli.error_details import ErrorDetails, decode_details
from limiquantix.errors import FieldViolation, InvalidArgument
from limiquantix.rpc.status import to_status

text = st.text(max_size=40).filter(lambda s: s.isprintable())


def _as_connect(error: InvalidArgument) -> list[dict[str, str]]:
    return [
        {
            "type": packed.type_url.rpartition("/")[2],
            "value": base64.b64encode(packed.value).decode().rstrip("="),
        }
        for packed in to_status(error).details
    ]


@given(
    text.filter(bool),
    st.dictionaries(text, text, max_size=4),
    st.lists(st.tuples(text, text), max_size=4),
    st.one_of(st.none(), st.integers(0, 10**6)),
)
def test_decode_details_reads_what_the_server_writes(
    reason: str, metadata: dict[str, str], violations: list[tuple[str, str]], retry_after_s: int | None
) -> None:
    faults = [FieldViolation(field, description) for field, description in violations]
    error = InvalidArgument(reason, "m", metadata=metadata, violations=faults, retry_after_s=retry_after_s)
    assert decode_details(_as_connect(error)) == ErrorDetails(reason, metadata, faults, retry_after_s)


@given(st.binary(max_size=60), st.sampled_from(["ErrorInfo", "BadRequest", "RetryInfo"]))
def test_decode_details_nonsense_is_left_out(data: bytes, kind: str) -> None:
    decoded = decode_details([{"type": f"google.rpc.{kind}", "value": base64.b64encode(data).decode()}])
    assert isinstance(decoded, ErrorDetails)


def test_decode_details_of_no_list_is_empty() -> None:
    nonsense: list[object] = [None, "x", 7, {}, [1, None, {"type": "google.rpc.ErrorInfo", "value": "!!"}], [{}]]
    for details in nonsense:
        assert decode_details(details) == ErrorDetails(violations=[])
