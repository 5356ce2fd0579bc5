"""The VM `hello`: created, booted, and believed only when the guest itself has spoken."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from controlplane.cli.dev.api import Api
from controlplane.cli.dev.guest_image import READY_MARKER, GuestReport, find_guest_report

VM_NAME = "hello"
MEMORY_MIB = 128
BOOT_TIMEOUT_S = 120.0
"""A guest is up in two seconds where nothing else runs; emulated, on a machine under load, it may take far longer."""

_BEYOND_ANY_LOG = 2**40
"""Largest offset the API takes; reading there answers with the log's end."""

_POLL_INTERVAL_S = 0.05
_QUOTED_LINES = 15


class GuestSilent(Exception):
    """The guest did not say that it is up; the text has what it did say."""


@dataclass(frozen=True, slots=True)
class BootedGuest:
    """A VM whose guest spoke. `boot_s` counts from the start call to the guest's line as the API shows it."""

    vm: dict[str, Any]
    report: GuestReport
    words: str
    boot_s: float


@dataclass(frozen=True, slots=True)
class BootFiles:
    """Paths of the demo's kernel and initial memory file system on its node; None for guests that are simulated."""

    kernel: str
    initrd: str
    arguments: str


async def boot_hello(api: Api, node_id: str, files: BootFiles | None, tell: Callable[[str], None]) -> BootedGuest:
    """Create the VM where it does not exist, start it, and wait for the line its guest prints.

    Raises:
        GuestSilent: no line came in time.
        ApiCallError: the control plane refused.
    """
    vm = await _existing(api, node_id, tell)
    if vm is None:
        tell(f"creating VM {VM_NAME}")
        vm = await api.call("VMService", "CreateVM", name=VM_NAME, nodeId=node_id, spec=_spec(files))
    _, log_end = await api.console_log(vm["id"], _BEYOND_ANY_LOG)
    tell(f"starting VM {VM_NAME}")
    started_s = time.monotonic()
    await api.call("VMService", "StartVM", id=vm["id"])
    tell("waiting for the guest's own words on its serial console")
    report, words = await _listen(api, vm["id"], log_end)
    boot_s = time.monotonic() - started_s
    return BootedGuest(await api.call("VMService", "GetVM", id=vm["id"]), report, words, boot_s)


async def _existing(api: Api, node_id: str, tell: Callable[[str], None]) -> dict[str, Any] | None:
    """Find a `hello` of an earlier run and bring it to where it can be started; None if there is none to use."""
    for vm in await api.vms():
        if vm["name"] != VM_NAME:
            continue
        state = vm["status"]["state"]
        if vm["status"]["nodeId"] != node_id or state == "LOST":
            tell(f"removing the VM {VM_NAME} of an earlier run ({state})")
            await api.call("VMService", "DeleteVM", id=vm["id"], removeFromInventoryOnly=True)
            return None
        if state in {"RUNNING", "PAUSED"}:
            tell(f"VM {VM_NAME} still runs; stopping it first")
            return await api.call("VMService", "StopVM", id=vm["id"], force=True)
        return vm
    return None


def _spec(files: BootFiles | None) -> dict[str, Any]:
    spec: dict[str, Any] = {"cpu": {"cores": 1}, "memory": {"sizeMib": MEMORY_MIB}, "disks": [{"sizeGib": 1}]}
    if files is not None:
        spec["boot"] = {
            "directBoot": {
                "kernelPath": files.kernel,
                "initrdPath": files.initrd,
                "cmdline": f"{files.arguments} hostname={VM_NAME}",
            }
        }
    return spec


async def _listen(api: Api, vm_id: str, offset: int) -> tuple[GuestReport, str]:
    heard = b""
    try:
        async with asyncio.timeout(BOOT_TIMEOUT_S):
            while True:
                piece, offset = await api.console_log(vm_id, offset)
                heard += piece
                text = heard.decode(errors="replace")
                report = find_guest_report(text)
                if report is not None:
                    return report, _line_with(READY_MARKER, text)
                await asyncio.sleep(_POLL_INTERVAL_S)
    except TimeoutError:
        raise GuestSilent(_silence(heard)) from None


def _line_with(marker: str, text: str) -> str:
    return _printable([line for line in text.splitlines() if marker in line][-1])


def _printable(line: str) -> str:
    """Drop what a guest could use to write elsewhere on the terminal."""
    return re.sub(r"[^\x20-\x7e]", "", line)


def _silence(heard: bytes) -> str:
    lines = [_printable(line) for line in heard.decode(errors="replace").splitlines()][-_QUOTED_LINES:]
    said = "\n".join(f"  | {line}" for line in lines) or "  (nothing)"
    return f"the guest did not say {READY_MARKER!r} within {BOOT_TIMEOUT_S:g} s; its serial console says:\n{said}"
