"""What schemathesis sends to a control plane, and what every answer must be like."""

from __future__ import annotations

import json
import re
import struct
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import httpx
import jsonschema_rs

SLOWEST_S = 40.0
"""No answer may take longer; a call is a matter of milliseconds, on a machine that does other things too."""

STREAM_MS = "150"
"""When watches are left."""

_INNER = re.compile(
    r"Traceback|File \"|line \d+, in |object at 0x|<class '|sqlalchemy|sqlite3|psycopg|asyncio|"
    r"site-packages|\.py\b|AssertionError|KeyError|TypeError|ValueError|AttributeError|RuntimeError|IndexError|"
    r"UnicodeDecodeError|NoneType|correlation"
)
"""What shows that somebody's exception went out with the answer."""

_ANY_CONTROL, _ASSIGNED_CONTROL = r"\\p{C}", r"\\p{Cc}\\p{Cf}\\p{Cs}\\p{Co}"
"""The rules' own language has no code points in \\p{C} that are not assigned; that of JSON Schema has."""


@dataclass
class Tally:
    """What was sent, and what came back."""

    statuses: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0
    slowest_path: str = ""

    @property
    def call_count(self) -> int:
        """Answers that were looked at."""
        return self.statuses.total()


class Judge:
    """Sends one body and checks the answer. The client is used by one thread."""

    def __init__(self, client: httpx.Client, document: Mapping[str, Any]) -> None:
        self.tally = Tally()
        self._client = client
        self._components = json.loads(json.dumps(document["components"]).replace(_ANY_CONTROL, _ASSIGNED_CONTROL))
        self._validators: dict[str, jsonschema_rs.Validator] = {}

    def call(self, path: str, operation: Mapping[str, Any], body: Any, headers: Mapping[str, str]) -> None:
        """Call a method. What breaks a rule fails an assertion that names the body."""
        is_stream = bool(operation.get("x-server-streaming"))
        (content_type,) = operation["requestBody"]["content"]
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {**headers, "content-type": content_type} | ({"connect-timeout-ms": STREAM_MS} if is_stream else {})
        began_s = time.monotonic()
        try:
            answer = self._client.post(path, content=_enveloped(content) if is_stream else content, headers=sent)
        except httpx.HTTPError as error:
            raise AssertionError(f"{path} got no answer: {error!r}, to {content[:2000]!r} with {sent}") from error
        self._note(path, answer.status_code, time.monotonic() - began_s)
        told = f"{path} answered {answer.status_code} {answer.text[:1000]!r} to {content[:2000]!r}"
        assert answer.status_code < 500 or _is_asked_for(answer, sent), told
        if answer.status_code != 200:
            self._check_error(answer.json(), told)
        elif is_stream:
            for flags, message in _envelopes(answer.content):
                if flags & 2:
                    failure = json.loads(message).get("error")
                    assert failure is None or self._check_error(failure, told), told
                else:
                    self._check(
                        operation["responses"]["200"]["content"][content_type]["schema"], json.loads(message), told
                    )
        else:
            self._check(operation["responses"]["200"]["content"][content_type]["schema"], answer.json(), told)

    def _note(self, path: str, status: int, took_s: float) -> None:
        self.tally.statuses[status] += 1
        if took_s > self.tally.slowest_s:
            self.tally.slowest_s, self.tally.slowest_path = took_s, path
        assert took_s < SLOWEST_S, f"{path} took {took_s:.1f} s"

    def _check_error(self, document: Any, told: str) -> bool:
        self._check({"$ref": "#/components/schemas/connect.Error"}, document, told)
        assert document["code"] not in {"internal", "unknown", "data_loss"}, told
        words = document.get("message", "") + json.dumps([each.get("debug") for each in document.get("details", ())])
        assert not _INNER.search(words), told
        return True

    def _check(self, schema: Mapping[str, Any], document: Any, told: str) -> None:
        name = json.dumps(schema)
        validator = self._validators.get(name)
        if validator is None:
            validator = jsonschema_rs.Draft202012Validator({**schema, "components": self._components})
            self._validators[name] = validator
        fault = next(iter(validator.iter_errors(document)), None)
        assert fault is None, f"{fault}\n{told}"


def _is_asked_for(answer: httpx.Response, sent: Mapping[str, str]) -> bool:
    """Tell a method that nobody wrote, and a caller's own deadline, from faults of the server."""
    if answer.status_code == HTTPStatus.NOT_IMPLEMENTED:
        return "not in this version" in answer.text
    return answer.status_code == HTTPStatus.GATEWAY_TIMEOUT and "connect-timeout-ms" in sent


def with_known_ids(body: Any, known: Mapping[str, Sequence[str]], pick: int) -> Any:
    """Name things that are there where a body names some; else hardly a call would come past NOT_FOUND.

    Args:
        known: ids by the name of the field that has one.
    """
    if isinstance(body, list):
        return [with_known_ids(item, known, pick + index) for index, item in enumerate(body)]
    if not isinstance(body, dict):
        return body
    return {
        key: known[key][pick % len(known[key])]
        if known.get(key) and isinstance(value, str)
        else with_known_ids(value, known, pick)
        for key, value in body.items()
    }


def _enveloped(content: bytes) -> bytes:
    return struct.pack(">BI", 0, len(content)) + content


def _envelopes(content: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at < len(content):
        flags, length = struct.unpack_from(">BI", content, at)
        found.append((flags, content[at + 5 : at + 5 + length]))
        at += 5 + length
    return found
