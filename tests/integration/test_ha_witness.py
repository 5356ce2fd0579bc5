"""Whether the witness of the tests of high availability sees what it is there for, in two QEMUs on one disk."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support import serial_guests
from tests.support.ha_witness import HaWitness, Watched
from tests.support.private_libvirt_host import eventually, leave_out

HOSTS = ("here", "there")


@contextmanager
def watched_vm(directory: Path, *, second_is_paused: bool) -> Iterator[tuple[HaWitness, str]]:
    """Run a VM in two places on the same disk, the second time perhaps as one that waits for a guest."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        leave_out("qemu-system-x86_64 is not installed")
    vm_id = str(uuid.uuid4())
    disk = serial_guests.write_disk(directory / "disk.raw", serial_guests.DISK_COUNTER)
    witness = HaWitness({name: Watched(directory / name, directory / name) for name in HOSTS})
    with ExitStack() as stack:
        for name in HOSTS:
            (directory / name).mkdir()
            words: list[str] = [
                *(str(qemu), "-accel", "tcg", "-m", "16", "-nodefaults", "-display", "none", "-uuid", vm_id),
                *("-pidfile", str(directory / name / "vm.pid"), "-serial", f"file:{directory / name / vm_id}.log"),
                *("-drive", f"file={disk},format=raw,if=ide,file.locking=off"),
                *(["-S"] if second_is_paused and name == HOSTS[1] else []),
            ]
            process = stack.enter_context(subprocess.Popen(words, stdin=subprocess.DEVNULL))
            stack.callback(process.kill)
        witness.watch(vm_id, disk)
        yield witness, vm_id


async def both_live(witness: HaWitness, vm_id: str) -> None:
    async def look() -> bool | None:
        return True if len(witness.alive_on(vm_id)) == len(HOSTS) else None

    await eventually(look, "both processes")


async def test_guest_on_its_way_has_two_processes_of_which_one_runs(tmp_path: Path) -> None:
    with watched_vm(tmp_path, second_is_paused=True) as (witness, vm_id), witness.moving(vm_id), witness.watching():
        await both_live(witness, vm_id)
        await witness.counts_on(vm_id, HOSTS[0], more=5)
    witness.check()


async def test_two_that_run_are_seen_even_where_a_guest_may_be_on_its_way(tmp_path: Path) -> None:
    with watched_vm(tmp_path, second_is_paused=False) as (witness, vm_id), witness.moving(vm_id), witness.watching():
        for name in HOSTS:
            await witness.counts_on(vm_id, name, more=5)
    assert not [fault for fault in witness.faults if "ran on" in fault]  # it is told by what they counted alone
    with pytest.raises(AssertionError):
        witness.check()


async def test_second_process_of_a_guest_that_stays_is_a_fault(tmp_path: Path) -> None:
    with watched_vm(tmp_path, second_is_paused=True) as (witness, vm_id), witness.watching():
        await both_live(witness, vm_id)
    with pytest.raises(AssertionError, match="ran on"):
        witness.check()
