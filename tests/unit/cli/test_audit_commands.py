"""`limiquantix audit`: tables, filters, JSON lines and the exit status of a check."""

from __future__ import annotations

import base64

from tests.support.fake_http_api import FakeApi, Run

RECORD = {
    "id": "8b7d",
    "begunAt": "2026-01-02T03:04:05.6Z",
    "principalKind": "user",
    "principalName": "ann",
    "method": "/limiquantix.compute.v1.VMService/DeleteVM",
    "resources": ["vm/v1"],
    "outcome": "AUDIT_OUTCOME_REFUSED",
    "address": "192.0.2.7",
    "reason": "ticket\x1b[31m 7",
    "message": "vm.delete is missing",
    "callCount": 3,
}


def test_list_asks_with_filters_and_prints_a_table(api: FakeApi, run: Run) -> None:
    api.answers["ListAuditRecords"] = lambda request: {"records": [RECORD]}
    options = ["--since", "2026-01-01T00:00:00Z", "--who", "ann", "--on", "vm/v1", "--what", "DeleteVM"]
    result = run("audit", "list", *options, "--outcome", "refused", "--outcome", "unknown", "--wide")
    ((method, request),) = api.requests
    assert (method, request["filter"]) == (
        "ListAuditRecords",
        {
            "principal": "ann",
            "resource": "vm/v1",
            "method": "DeleteVM",
            "outcomes": ["AUDIT_OUTCOME_REFUSED", "AUDIT_OUTCOME_UNKNOWN"],
            "since": "2026-01-01T00:00:00+00:00",
        },
    )
    assert result.exit_code == 0
    for word in (
        "2026-01-02 03:04:05",
        "user:ann",
        "DeleteVM",
        "vm/v1",
        "refused",
        "192.0.2.7",
        "vm.delete is missing",
    ):
        assert word in result.output
    assert "\x1b" not in result.output


def test_export_writes_the_lines_as_they_come(api: FakeApi, run: Run) -> None:
    pieces = [b'{"id":"1"}\n', b'{"id":"2"}\n{"id":"3"}\n']
    api.scenes["ExportAuditRecords"] = [[*({"lines": base64.b64encode(each).decode()} for each in pieces), None]]
    result = run("audit", "export", "--who", "ann")
    assert result.stdout_bytes == b"".join(pieces)
    assert api.requests == [("ExportAuditRecords", {"filter": {"principal": "ann"}})]


def test_verify_says_that_all_is_well(api: FakeApi, run: Run) -> None:
    api.answers["VerifyAuditRecords"] = lambda request: {"recordCount": "7", "writerCount": 2}
    result = run("audit", "verify")
    assert (result.exit_code, result.output) == (0, "7 records of 2 processes are as written\n")


def test_verify_fails_if_something_is_wrong_and_says_where(api: FakeApi, run: Run) -> None:
    fault = {"writerId": "w1", "number": "4", "description": "a record is missing"}
    api.answers["VerifyAuditRecords"] = lambda request: {"recordCount": "7", "writerCount": 1, "faults": [fault]}
    result = run("audit", "verify")
    assert result.exit_code == 1
    for word in ("w1", "4", "a record is missing", "not as it was written"):
        assert word in result.output
