"""Read a guest agent's answers, which an enemy may have written: pure, strict, bounded.

An answer is refused whole (`BadAnswer`) where it is not of the documented kind; only single entries of a list that are
odd (an interface without a name, an address that is none) are left out, so that one strange device does not hide all
others. Source of the shapes: the QEMU Guest Agent protocol reference (qapi/qga).
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from hypervisor.guests import FreezeStatus, GuestFileSystem, GuestInterface, GuestSystem, GuestUser

MAX_ANSWER_CHARS: Final = 4 * 2**20
"""What libvirt hands on at most (REMOTE_STRING_MAX); anything longer is refused unread."""
MAX_ANSWER_VALUES: Final = 131_072
"""A megabyte of "{}," would become a hundred of dictionaries; 1,024 file systems with their disks have half as many."""
MAX_NAME_CHARS: Final = 255
MAX_PATH_CHARS: Final = 4096
MAX_WORDS_CHARS: Final = 500
MAX_INTERFACES: Final = 256
MAX_ADDRESSES: Final = 256
MAX_FILE_SYSTEMS: Final = 1024
MAX_USERS: Final = 256
MAX_PID: Final = 2**32 - 1
"""Windows has process ids and handles beyond 2^31."""
MAX_SIZE_BYTES: Final = 2**63 - 1

_MAX_INTEGER_DIGITS: Final = 20
_MAC_ADDRESS: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_NAMED_SEPARATORS: Final = frozenset({"Zl", "Zp"})


class BadAnswer(ValueError):
    """What the agent sent is not an answer to what it was asked; the message quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class ProcessState:
    """What the agent says of a process it started: `exit_code` is None while it runs."""

    exit_code: int | None
    stdout: bytes = b""
    stderr: bytes = b""
    is_stdout_cut: bool = False
    is_stderr_cut: bool = False


def clean(text: str, max_chars: int = MAX_NAME_CHARS) -> str:
    """Make text of a guest fit to be shown and stored: one line, no control, format, bidi or surrogate characters."""
    kept = text[:max_chars]
    if kept.isascii() and kept.isprintable():
        return kept
    return "".join("\ufffd" if _is_unfit(character) else character for character in kept)


def _is_unfit(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] == "C" or category in _NAMED_SEPARATORS


def parse(text: str) -> Any:
    """Return what an answer's "return" holds.

    Raises:
        BadAnswer: it is too large, too deep, no JSON, or no object with "return".
    """
    if len(text) > MAX_ANSWER_CHARS:
        raise BadAnswer(f"its answer is larger than {MAX_ANSWER_CHARS} characters")
    if sum(map(text.count, "{[,:")) > MAX_ANSWER_VALUES:
        raise BadAnswer("its answer has too many parts")
    try:
        document = json.loads(text, parse_int=_integer, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadAnswer("its answer is not JSON that can be used") from error
    if not isinstance(document, dict) or "return" not in document:
        raise BadAnswer("its answer holds no result")
    return document["return"]


def _integer(digits: str) -> int:
    if len(digits) > _MAX_INTEGER_DIGITS:
        raise ValueError("a number with too many digits")
    return int(digits)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def read_nothing(value: Any) -> None:
    """Read the answer of a command that returns nothing, which is an empty object."""
    _dict(value, "its answer")


def read_version(value: Any) -> str:
    """Read `guest-info`: the agent's version."""
    return _text(_dict(value, "its answer"), "version")


def read_system(os: Any, hostname: str = "", agent_version: str = "") -> GuestSystem:
    """Read `guest-get-osinfo`."""
    found = _dict(os, "the description of its system")
    return GuestSystem(
        os_name=_text(found, "pretty-name") or _text(found, "name") or _text(found, "id"),
        os_version=_text(found, "version") or _text(found, "version-id"),
        kernel_version=_text(found, "kernel-release"),
        hostname=hostname,
        agent_version=agent_version,
    )


def read_hostname(value: Any) -> str:
    """Read `guest-get-host-name`."""
    return _text(_dict(value, "its answer"), "host-name")


def read_interfaces(value: Any) -> tuple[GuestInterface, ...]:
    """Read `guest-network-get-interfaces`."""
    room = MAX_ADDRESSES
    found: list[GuestInterface] = []
    for entry in _objects(value, "its interfaces", MAX_INTERFACES):
        name = _text(entry, "name")
        if not name:
            continue
        addresses = tuple(dict.fromkeys(_addresses(entry.get("ip-addresses"))))[:room]
        room -= len(addresses)
        mac_address = _text(entry, "hardware-address").lower()
        found.append(GuestInterface(name, mac_address if _MAC_ADDRESS.fullmatch(mac_address) else "", addresses))
    return tuple(found)


def _addresses(value: Any) -> Iterator[str]:
    if value is None:  # an interface without any
        return
    for entry in _objects(value, "its addresses", MAX_ADDRESSES):
        text = entry.get("ip-address")
        if not isinstance(text, str) or len(text) > 64:
            continue
        try:
            # Without the scope of link-local IPv6, which is a name of the guest's choice.
            yield str(ipaddress.ip_address(text.partition("%")[0]))
        except ValueError:
            continue


def read_file_systems(value: Any) -> tuple[GuestFileSystem, ...]:
    """Read `guest-get-fsinfo`."""
    found = []
    for entry in _objects(value, "its file systems", MAX_FILE_SYSTEMS):
        mount_point = _text(entry, "mountpoint", MAX_PATH_CHARS)
        if mount_point:
            total, used = _size(entry, "total-bytes"), _size(entry, "used-bytes")
            device = _text(entry, "name", MAX_PATH_CHARS)
            found.append(GuestFileSystem(mount_point, _text(entry, "type"), device, total, min(used, total)))
    return tuple(found)


def read_users(value: Any) -> tuple[GuestUser, ...]:
    """Read `guest-get-users`."""
    found = []
    for entry in _objects(value, "its users", MAX_USERS):
        name = "\\".join(part for part in (_text(entry, "domain"), _text(entry, "user")) if part)
        if name:
            found.append(GuestUser(name, _moment(entry.get("login-time"))))
    return tuple(found)


def _moment(value: Any) -> float:
    is_sane = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**33
    return float(value) if is_sane else 0.0


def read_count(value: Any) -> int:
    """Read how many file systems were frozen or thawed."""
    return _number(value, "its count of file systems", 2**31 - 1)


def read_freeze_status(value: Any) -> FreezeStatus:
    """Read `guest-fsfreeze-status`."""
    try:
        return FreezeStatus(value)
    except ValueError as error:
        raise BadAnswer("whether it is frozen is neither yes nor no") from error


def read_time_ns(value: Any) -> int:
    """Read `guest-get-time`."""
    return _number(value, "its time", MAX_SIZE_BYTES)


def read_pid(value: Any) -> int:
    """Read `guest-exec`: the process that was started."""
    return _number(_dict(value, "its answer").get("pid"), "the process that it started", MAX_PID)


def read_process(value: Any, max_output_bytes: int) -> ProcessState:
    """Read `guest-exec-status`."""
    found = _dict(value, "its answer")
    has_exited = found.get("exited")
    if not isinstance(has_exited, bool):
        raise BadAnswer("whether the command has ended is neither yes nor no")
    if not has_exited:
        return ProcessState(None)
    exit_code = _number(found.get("exitcode", 0), "the exit code", 2**32 - 1)
    if "signal" in found:
        exit_code = 128 + _number(found["signal"], "the signal", 2**31)
    stdout, stderr = _bytes(found.get("out-data", "")), _bytes(found.get("err-data", ""))
    return ProcessState(
        exit_code if exit_code < 2**31 else exit_code - 2**32,  # Windows has codes such as 0xC0000005
        stdout[:max_output_bytes],
        stderr[:max_output_bytes],
        len(stdout) > max_output_bytes or found.get("out-truncated") is True,
        len(stderr) > max_output_bytes or found.get("err-truncated") is True,
    )


def read_handle(value: Any) -> int:
    """Read `guest-file-open`."""
    return _number(value, "the file's handle", MAX_SIZE_BYTES)


def read_piece(value: Any, max_bytes: int) -> tuple[bytes, bool]:
    """Read `guest-file-read`: what was read, and whether that was the end."""
    found = _dict(value, "its answer")
    data = _bytes(found.get("buf-b64", ""))
    if len(data) > max_bytes:
        raise BadAnswer("it sent more of the file than it was asked for")
    return data, found.get("eof") is True or not data


def read_written(value: Any, asked_bytes: int) -> int:
    """Read `guest-file-write`: how many bytes were taken."""
    count = _number(_dict(value, "its answer").get("count"), "the count of written bytes", asked_bytes)
    if count == 0:
        raise BadAnswer("it wrote nothing")
    return count


def read_position(value: Any) -> int:
    """Read `guest-file-seek`."""
    return _number(_dict(value, "its answer").get("position"), "the position in the file", MAX_SIZE_BYTES)


def _dict(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadAnswer(f"{what} is not of the kind it should be")
    return value


def _objects(value: Any, what: str, max_count: int) -> Iterator[dict[str, Any]]:
    """Give the objects of a list; what is beyond `max_count`, or is none, is left out."""
    if not isinstance(value, list):
        raise BadAnswer(f"{what} are not a list")
    yield from (entry for entry in value[:max_count] if isinstance(entry, dict))


def _text(found: dict[str, Any], name: str, max_chars: int = MAX_NAME_CHARS) -> str:
    value = found.get(name, "")
    return clean(value, max_chars) if isinstance(value, str) else ""


def _size(found: dict[str, Any], name: str) -> int:
    value = found.get(name, 0)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SIZE_BYTES else 0


def _number(value: Any, what: str, largest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise BadAnswer(f"{what} is not a number that can be")
    return value


def _bytes(value: Any) -> bytes:
    if not isinstance(value, str):
        raise BadAnswer("data is not text")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadAnswer("data is not base64") from error
