"""Whatever error there is, what a client decodes is what the server meant."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from limiquantix.errors import ERROR_CLASSES, ApiError, Code, FieldViolation, Reason
from limiquantix.rpc.status import (
    MAX_MESSAGE_BYTES,
    MAX_METADATA_BYTES,
    MAX_VIOLATIONS_BYTES,
    OMITTED,
    from_status,
    to_status,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)

ERRORS = st.builds(
    lambda error_class, *arguments, **keywords: error_class(*arguments, **keywords),
    st.sampled_from(list(ERROR_CLASSES.values())),
    st.sampled_from(Reason),
    TEXT,
    metadata=st.dictionaries(TEXT, TEXT, max_size=3),
    violations=st.lists(st.builds(FieldViolation, TEXT, TEXT), max_size=3),
    retry_after_s=st.none() | st.integers(0, 10**6).map(lambda ms: ms / 1000),
)

BIG_ERRORS = st.builds(
    lambda error_class, *arguments, **keywords: error_class(*arguments, **keywords),
    st.sampled_from(list(ERROR_CLASSES.values())),
    st.sampled_from(Reason),
    TEXT.map(lambda text: text * 100),
    metadata=st.integers(0, 300).map(lambda count: {f"node.{n}": "memory: needs more" for n in range(count)}),
    violations=st.integers(0, 300).map(lambda count: [FieldViolation(f"f[{n}]", "is wrong") for n in range(count)]),
)


@given(ERRORS)
def test_error_of_usual_size_survives_whole(error: ApiError) -> None:
    decoded = from_status(to_status(error))

    assert type(decoded) is type(error)
    assert (decoded.reason, decoded.message, decoded.metadata, decoded.violations) == (
        error.reason,
        error.message,
        error.metadata,
        error.violations,
    )
    assert decoded.retry_after_s == error.retry_after_s


@given(BIG_ERRORS)
def test_error_of_any_size_keeps_its_kind_and_fits_a_client(error: ApiError) -> None:
    status = to_status(error)
    decoded = from_status(status)

    assert (type(decoded), decoded.reason) == (type(error), error.reason)
    assert status.ByteSize() < MAX_MESSAGE_BYTES + MAX_METADATA_BYTES + MAX_VIOLATIONS_BYTES + 2_500
    told = {key: value for key, value in decoded.metadata.items() if key != OMITTED}
    assert told.items() <= dict(error.metadata).items()
    assert len(told) + int(decoded.metadata.get(OMITTED, "0")) == len(error.metadata)


def test_every_code_an_error_can_have_has_its_own_class() -> None:
    assert {code: error_class.code for code, error_class in ERROR_CLASSES.items()} == {
        code: code for code in ERROR_CLASSES
    }
    assert set(ERROR_CLASSES) >= {Code(number) for number in (3, 4, 5, 6, 8, 9, 10, 12, 13, 14)}
