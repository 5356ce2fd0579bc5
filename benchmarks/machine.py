"""The machine a run was made on, as far as it helps to judge its figures."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Machine:
    """`load` is the one-minute load average before the run; above 0.5 a CPU, somebody else was at work too."""

    cpu_model: str
    cpu_count: int
    memory_mib: int
    kernel: str
    python: str
    load: float

    def describe(self) -> str:
        """Say it in one line."""
        return (
            f"{self.cpu_count} CPUs ({self.cpu_model}), {self.memory_mib // 1024} GiB, Linux {self.kernel}, "
            f"Python {self.python}, load {self.load:.1f} before the run"
        )


def observe_machine() -> Machine:
    """Look at the machine now."""
    return Machine(
        cpu_model=_cpu_model(),
        cpu_count=len(os.sched_getaffinity(0)),
        memory_mib=psutil.virtual_memory().total // 2**20,
        kernel=platform.release(),
        python=platform.python_version(),
        load=os.getloadavg()[0],
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
