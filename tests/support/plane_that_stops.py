"""A control plane that stands still between deciding that a VM starts and telling the host; a program.

It stops itself by SIGSTOP, once: right before the start of the VM whose id is in the file that `STOPS_BEFORE` names,
which it removes. When it goes on it gives that command again and again until the host has done it or says that it does
not stand any more, and adds each answer to the file that `ANSWERS` names.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Final

import controlplane.__main__  # noqa: F401 - first, as where it is the program
from controlplane.app import main
from controlplane.daemons.grpc_pool import GrpcNodeDaemon
from limiquantix.errors import ApiError, Reason

STOPS_BEFORE: Final = "STOPS_BEFORE"
ANSWERS: Final = "ANSWERS"
STARTED: Final = "STARTED"
PAUSE_S: Final = 0.02
NOT_NOW: Final = frozenset({Reason.NODE_UNREACHABLE, Reason.NOT_INFORMED_YET, Reason.STOPPING})

_start = GrpcNodeDaemon.start_vm


async def start_vm(self: GrpcNodeDaemon, vm_id: str, generation: int) -> None:
    """Take the place of the method that gives the command."""
    if _is_asked_to_stop(vm_id):
        os.kill(os.getpid(), signal.SIGSTOP)
        # Whoever asked may give up meanwhile; the command is under way all the same.
        await asyncio.shield(asyncio.create_task(_insist(self, vm_id, generation)))
    else:
        await _start(self, vm_id, generation)


def _is_asked_to_stop(vm_id: str) -> bool:
    path = Path(os.environ[STOPS_BEFORE])
    if not path.exists() or path.read_text() != vm_id:
        return False
    path.unlink()
    return True


def _note(answer: str) -> None:
    with Path(os.environ[ANSWERS]).open("a") as answers:
        answers.write(f"{answer}\n")


async def _insist(daemon: GrpcNodeDaemon, vm_id: str, generation: int) -> None:
    answer: str = Reason.NODE_UNREACHABLE
    while answer in NOT_NOW:
        await asyncio.sleep(PAUSE_S)
        try:
            await _start(daemon, vm_id, generation)
        except ApiError as error:
            answer = error.reason
        else:
            answer = STARTED
        _note(answer)


if __name__ == "__main__":
    GrpcNodeDaemon.start_vm = start_vm  # type: ignore[method-assign]
    main()
