"""A process that takes part in an election and writes down what it takes itself to be; to be killed or paused.

    python -m tests.support.candidate_process NAME PREFIX TTL_S FILE ENDPOINT...

Each line of the file is a moment by the machine's clock since boot, read before and after the look, and 1 or 0.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from controlplane.coordination.etcd.client import EtcdClient
from controlplane.coordination.etcd.coordinator import EtcdCoordinator
from controlplane.coordination.etcd.election import boot_clock_s
from tests.support.elections import candidate
from tests.support.node_daemon_process import environment

LOOK_S = 0.005


@dataclass(frozen=True, slots=True)
class Look:
    """What the process took itself to be, at some moment between two."""

    began_s: float
    ended_s: float
    is_elected: bool


@dataclass(slots=True)
class CandidateProcess:
    """Such a process, from outside."""

    process: subprocess.Popen[bytes]
    path: Path

    @classmethod
    def start(cls, directory: Path, name: str, prefix: str, ttl_s: int, endpoints: list[str]) -> CandidateProcess:
        """Start one; it is not elected yet."""
        path = directory / f"{name}.looks"
        path.touch()
        words = [sys.executable, "-m", __name__, name, prefix, str(ttl_s), str(path), *endpoints]
        return cls(subprocess.Popen(words, env=environment()), path)

    def looks(self) -> list[Look]:
        """Read all it wrote, but for a line half written."""
        lines = self.path.read_text().split("\n")[:-1]
        words = [line.split() for line in lines]
        return [Look(float(began_s), float(ended_s), is_elected == "1") for began_s, ended_s, is_elected in words]

    @property
    def is_elected(self) -> bool:
        """Whether it wrote last that it is."""
        looks = self.looks()
        return bool(looks) and looks[-1].is_elected

    def pause(self) -> None:
        """Have it stand still."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Have it go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it, paused or not."""
        self.process.kill()
        self.process.wait()


async def _take_part(name: str, prefix: str, ttl_s: int, path: Path, endpoints: list[str]) -> None:
    coordinator = EtcdCoordinator(EtcdClient(endpoints), prefix, ttl_s)
    async with coordinator.elect(candidate(name)) as election:
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        while True:
            began_s = boot_clock_s()
            is_elected = election.is_elected
            os.write(file, f"{began_s} {boot_clock_s()} {int(is_elected)}\n".encode())
            await asyncio.sleep(LOOK_S)


if __name__ == "__main__":
    own_name, own_prefix, own_ttl_s, own_path, *own_endpoints = sys.argv[1:]
    asyncio.run(_take_part(own_name, own_prefix, int(own_ttl_s), Path(own_path), own_endpoints))
