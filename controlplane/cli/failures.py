"""Failures as people and scripts see them: sentences on standard error, and an exit status.

Exit status: 0 done, 1 refused or failed, 2 wrong command line, 3 no control plane answers, 130 interrupted.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from typing import IO, Any

import click

from controlplane.cli.terminal_text import one_line
from limiquantix.errors import ApiError, Reason

EXIT_REFUSED = 1
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130
"""128 and the number of SIGINT, as shells count."""

_NODE_KEY = "node."

_HINTS = {
    Reason.VM_NOT_FOUND: "'limiquantix vm list' shows the VMs there are",
    Reason.NODE_NOT_FOUND: "'limiquantix node list' shows the nodes there are",
    Reason.NO_NODE_FITS: "'limiquantix node list' shows what each node has free",
    Reason.NO_FAILOVER_ROOM: "'limiquantix ha status --forecast' shows what would happen if each node died now",
    Reason.NODE_UNREACHABLE: "'limiquantix node list' shows which nodes are alive",
    Reason.GUEST_AGENT_ABSENT: "'limiquantix vm console-log' shows how far the guest has booted",
    Reason.GUEST_AGENT_SILENT: "'limiquantix vm guest ping' tells when it answers again",
    Reason.GUEST_DID_NOT_STOP: "--force cuts the power, --timeout gives the guest longer",
    Reason.CONCURRENT_CHANGE: "repeat the command",
    Reason.VM_NOT_MANAGED: "'limiquantix vm take-over' takes it over",
    Reason.OPERATION_NOT_FOUND: "'limiquantix operation list' shows the newest operations",
    Reason.REQUEST_ID_REUSED: "give each change a --request-id of its own, or none",
    Reason.TOO_MANY_OPERATIONS: "repeat the command in a moment",
    Reason.DEADLINE_EXCEEDED: "it may have happened: look with 'limiquantix vm show' before you repeat it",
    Reason.NOT_LOGGED_IN: "'limiquantix login' logs in; LIMIQUANTIX_TOKEN may hold an API key instead",
    Reason.SESSION_ENDED: "'limiquantix login' logs in again",
    Reason.CREDENTIAL_EXPIRED: "'limiquantix login' logs in again",
    Reason.INTERNAL: "this is a defect of the server; its log has the details under the id above",
}

_OPTIONS = (
    (r"name", "NAME"),
    (r"project_id", "--project"),
    (r"node_id", "--node"),
    (r"description", "--description"),
    (r"labels\b.*", "--label"),
    (r"states\b.*", "--state"),
    (r"timeout_sec", "--timeout"),
    (r"metadata\.limiquantix-request-id", "--request-id"),
    (r"kinds\b.*", "--kind"),
    (r"type", "--type"),
    (r"severity", "--severity"),
    (r"since", "--since"),
    (r"limit", "--limit"),
    (r"spec\.cpu(\.cores)?", "--cpus"),
    (r"spec\.memory(\.size_mib)?", "--memory"),
    (r"spec\.disks\b.*", "--disk"),
    (r"spec\.nics\b.*", "--nic"),
    (r"spec\.cdroms\b.*", "--cdrom"),
    (r"spec\.firmware", "--firmware"),
    (r"spec\.boot\.direct_boot\.kernel_path", "--kernel"),
    (r"spec\.boot\.direct_boot\.initrd_path", "--initrd"),
    (r"spec\.boot\.direct_boot\.cmdline", "--cmdline"),
)
"""Which option of ours a field of a request comes from."""


class Failure(click.ClickException):
    """A failure with what explains it and what to do about it."""

    exit_code = EXIT_REFUSED

    def __init__(self, message: str, *, explanations: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message)
        self.explanations = explanations
        self.hint = hint

    def show(self, file: IO[Any] | None = None) -> None:
        """Write the failure to standard error."""
        stream = file or sys.stderr
        _write(stream, "error:", "red", one_line(self.message))
        for line in self.explanations:
            click.echo(f"  {one_line(line)}", file=stream)
        if self.hint:
            _write(stream, "hint:", "cyan", one_line(self.hint))


class Unreachable(Failure):
    """No control plane answers."""

    exit_code = EXIT_UNREACHABLE


class Interrupted(Failure):
    """The person at the keyboard did not want to wait any longer."""

    exit_code = EXIT_INTERRUPTED


def refused(error: ApiError, operation_id: str = "") -> Failure:
    """Explain a refusal of the server: every faulty field and every node's reason on a line of its own.

    Args:
        operation_id: the operation that failed, "" if it did not come to one.
    """
    message = error.message
    if error.violations:
        count = len(error.violations)
        message = "the request has a fault" if count == 1 else f"the request has {count} faults"
    explanations, hint = [*_explanations(error)], _hint(error)
    if operation_id and error.reason == Reason.DEADLINE_EXCEEDED:
        hint = f"'limiquantix operation wait {operation_id}' waits on"
    elif operation_id:
        explanations.append(f"'limiquantix operation show {operation_id}' has the details")
    return Failure(message, explanations=tuple(explanations), hint=hint)


def _explanations(error: ApiError) -> Iterator[str]:
    for violation in error.violations:
        option = _option_of(violation.field)
        where = f"{violation.field} ({option})" if option else violation.field
        yield f"{where}: {violation.description}" if where else violation.description
    for key, reason in sorted(error.metadata.items()):
        if key.startswith(_NODE_KEY):
            yield f"node {key.removeprefix(_NODE_KEY)}: {reason}"


def _option_of(field: str) -> str:
    return next((option for pattern, option in _OPTIONS if re.fullmatch(pattern, field)), "")


def _hint(error: ApiError) -> str:
    hint = next((text for reason, text in _HINTS.items() if reason == error.reason), "")
    if not hint and error.retry_after_s is not None:
        return f"repeat the command in {error.retry_after_s:g} s"
    return hint


def warn(message: str) -> None:
    """Write a warning to standard error, in place of a spinner that may be on its line."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[2K")
    _write(sys.stderr, "warning:", "yellow", one_line(message))


def _write(stream: IO[Any], label: str, color: str, text: str) -> None:
    if stream.isatty() and not os.environ.get("NO_COLOR"):
        label = click.style(label, fg=color, bold=True)
    click.echo(f"{label} {text}", file=stream)
