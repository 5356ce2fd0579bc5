"""Whatever an agent sends is either an answer that can be used, or refused as none."""

from __future__ import annotations

import base64
import json
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor import guest_answers as answers
from hypervisor.guest_answers import BadAnswer
from hypervisor.guests import FreezeStatus, GuestFileSystem, GuestInterface, GuestSystem, GuestUser

READERS: list[Callable[[Any], Any]] = [
    answers.read_nothing,
    answers.read_version,
    answers.read_system,
    answers.read_hostname,
    answers.read_interfaces,
    answers.read_file_systems,
    answers.read_users,
    answers.read_count,
    answers.read_freeze_status,
    answers.read_time_ns,
    answers.read_pid,
    answers.read_handle,
    answers.read_position,
    lambda value: answers.read_process(value, 10),
    lambda value: answers.read_piece(value, 10),
    lambda value: answers.read_written(value, 10),
]

NAMES = """
return name version pretty-name kernel-release host-name type mountpoint ip-addresses ip-address hardware-address
total-bytes used-bytes user domain login-time pid exited exitcode signal out-data err-data out-truncated buf-b64 eof
count
"""
KEYS = st.sampled_from(NAMES.split())
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=300)
    | st.sampled_from(["frozen", "thawed", "10.0.0.1", "fe80::1%\u202eeth0", "52:54:00:00:00:01", "YQ=="])
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS | st.text(), inner), max_leaves=40)


def texts_in(found: Any) -> list[str]:
    if isinstance(found, str):
        return [found]
    if isinstance(found, tuple):
        return [text for item in found for text in texts_in(item)]
    fields = getattr(type(found), "__dataclass_fields__", {})
    return [text for name in fields for text in texts_in(getattr(found, name))]


def is_fit(text: str) -> bool:
    return not any(unicodedata.category(char)[0] == "C" or char in "\u2028\u2029" for char in text)


@given(value=VALUES, reader=st.sampled_from(READERS))
def test_reader_of_any_value_gives_clean_text_or_refuses(value: Any, reader: Callable[[Any], Any]) -> None:
    try:
        found = reader(value)
    except BadAnswer:
        return
    assert all(is_fit(text) and len(text) <= answers.MAX_PATH_CHARS for text in texts_in(found))


@given(st.text())
def test_parse_of_any_text_gives_a_value_or_refuses(text: str) -> None:
    with pytest.raises(BadAnswer):
        answers.parse(text)


@given(VALUES)
def test_parse_of_an_answer_gives_what_was_returned(value: Any) -> None:
    try:
        found = answers.parse(json.dumps({"return": value}))
    except BadAnswer:
        return  # numbers that are none, or of more digits than any answer has
    assert found == value


@given(st.text())
def test_clean_leaves_one_line_without_control_or_bidi_characters(text: str) -> None:
    cleaned = answers.clean(text, 50)
    assert is_fit(cleaned)
    assert len(cleaned) <= 50
    assert answers.clean(cleaned, 50) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"error": {"class": "GenericError", "desc": "no"}}',
        '{"return": NaN}',
        '{"return": Infinity}',
        '{"return": ' + "9" * 5000 + "}",
        '{"return": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"return": [' + "{}," * 200_000 + "{}]}",
        '{"return": "' + "a" * answers.MAX_ANSWER_CHARS + '"}',
    ],
    ids=lambda text: f"{text[:30]}-{len(text)}",
)
def test_parse_of_what_is_no_answer_is_refused(text: str) -> None:
    with pytest.raises(BadAnswer):
        answers.parse(text)


def test_system_is_read_with_names_cleaned() -> None:
    value = {"pretty-name": "Debian\u202e\n\x1b[31m", "version": "12 (bookworm)", "kernel-release": "6.1.0"}
    assert answers.read_system(value, "web", "7.2") == GuestSystem(
        "Debian\ufffd\ufffd\ufffd[31m", "12 (bookworm)", "6.1.0", "web", "7.2"
    )


def test_interfaces_odd_entries_are_left_out_and_addresses_made_canonical() -> None:
    value = [
        {"name": "lo"},
        7,
        {"name": ""},
        {"name": "\u202eeth0", "hardware-address": "52:54:00:AA:00:01", "ip-addresses": [
            {"ip-address": "FE80:0::1%eth0", "prefix": 64},
            {"ip-address": "<script>"},
            {"ip-address": 7},
            {"ip-address": "10.0.0.1"},
            {"ip-address": "10.0.0.1"},
        ]},
        {"name": "eth1", "hardware-address": "no"},
    ]  # fmt: skip
    assert answers.read_interfaces(value) == (
        GuestInterface("lo"),
        GuestInterface("\ufffdeth0", "52:54:00:aa:00:01", ("fe80::1", "10.0.0.1")),
        GuestInterface("eth1"),
    )


def test_interfaces_and_addresses_are_limited_in_number() -> None:
    addresses = [{"ip-address": f"10.0.{n // 256}.{n % 256}"} for n in range(300)]
    found = answers.read_interfaces([{"name": f"eth{n}", "ip-addresses": addresses} for n in range(1000)])
    assert len(found) == answers.MAX_INTERFACES
    assert sum(len(nic.ip_addresses) for nic in found) == answers.MAX_ADDRESSES


def test_file_systems_are_limited_in_number_and_never_fuller_than_full() -> None:
    entry = {"mountpoint": "/", "type": "ext4", "name": "vda1", "total-bytes": 100, "used-bytes": 2**70}
    found = answers.read_file_systems([entry] * 2000)
    assert len(found) == answers.MAX_FILE_SYSTEMS
    assert found[0] == GuestFileSystem("/", "ext4", "vda1", 100, 0)
    assert answers.read_file_systems([{**entry, "used-bytes": 200}])[0].used_bytes == 100


def test_users_with_a_time_that_cannot_be_have_none() -> None:
    value = [{"user": "ann", "login-time": 1.5e9, "domain": "CORP"}, {"user": "bob", "login-time": 1e300}, {"user": 3}]
    assert answers.read_users(value) == (GuestUser("CORP\\ann", 1.5e9), GuestUser("bob"))


def test_process_output_is_cut_at_the_bound() -> None:
    data = base64.b64encode(b"0123456789ab").decode()
    state = answers.read_process({"exited": True, "exitcode": 3, "out-data": data, "err-data": "YQ=="}, 10)
    assert (state.exit_code, state.stdout, state.is_stdout_cut) == (3, b"0123456789", True)
    assert (state.stderr, state.is_stderr_cut) == (b"a", False)


@pytest.mark.parametrize(
    ("value", "exit_code"),
    [
        ({"exited": False, "exitcode": 9}, None),
        ({"exited": True}, 0),
        ({"exited": True, "signal": 9}, 137),
        ({"exited": True, "exitcode": 0xC0000005}, -1073741819),
    ],
)
def test_process_exit_code_is_that_of_a_shell(value: Any, exit_code: int | None) -> None:
    assert answers.read_process(value, 10).exit_code == exit_code


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"exited": 1},
        {"exited": True, "exitcode": -1},
        {"exited": True, "out-data": "not base64!"},
        {"exited": True, "out-data": ["YQ=="]},
    ],
)
def test_process_of_another_shape_is_refused(value: Any) -> None:
    with pytest.raises(BadAnswer):
        answers.read_process(value, 10)


def test_piece_larger_than_asked_for_is_refused() -> None:
    with pytest.raises(BadAnswer):
        answers.read_piece({"buf-b64": base64.b64encode(bytes(11)).decode(), "eof": True}, 10)
    assert answers.read_piece({"buf-b64": "YQ==", "eof": False, "count": 999}, 10) == (b"a", False)
    assert answers.read_piece({"count": 999}, 10) == (b"", True)


@pytest.mark.parametrize("count", [-1, 0, 11, True, "3", 2**70])
def test_written_count_that_cannot_be_is_refused(count: Any) -> None:
    with pytest.raises(BadAnswer):
        answers.read_written({"count": count}, 10)


def test_freeze_status_is_one_of_two() -> None:
    assert answers.read_freeze_status("frozen") is FreezeStatus.FROZEN
    for value in ("Frozen", None, ["frozen"], 1):
        with pytest.raises(BadAnswer):
            answers.read_freeze_status(value)
