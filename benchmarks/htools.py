"""Ganeti's htools, run on the same clusters: their file format, hspace and hbal.

The files are made so that nothing of Ganeti's own model gets in the way of a comparison: disks without size on storage
that all nodes share, an instance policy without limits, as many vCPUs on a node as it has, no share for the node
itself. Source: man htools(1), hspace(1), hbal(1).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "ganeti-htools"
NOT_INSTALLED = f"hspace and hbal are not installed; apt-get install {PACKAGE}"
THOROUGH = ("--min-gain=0.0001", "--min-gain-limit=0.0001")
"""Go on below a score of 0.1 too, where hbal by default makes large steps only."""
_DEADLINE_S = 600.0
_DISK_MIB = 10_000_000
_SPARE_MIB = 1
"""More than there is: htools refuses whatever would leave a node without any memory, which ours may fill."""
_TEMPLATES = "diskless,file,sharedfile,plain,blockdev,drbd,rbd,ext,gluster"
_LIMITS = "128,1,0,0,0,0|0,0,0,0,0,0;100000000,10000,100000000,16,8,10000"
_POLICY = f"{_LIMITS}|{_TEMPLATES}|1.0|100000.0"
_SCORE = re.compile(r"(?:Initial score: |coefficients: overall )([0-9.]+)")


@dataclass(frozen=True, slots=True)
class Host:
    """A node."""

    name: str
    cpus: int
    memory_mib: int


@dataclass(frozen=True, slots=True)
class Guest:
    """A VM on a node."""

    name: str
    cpus: int
    memory_mib: int
    host: str


@dataclass(frozen=True, slots=True)
class Layout:
    """A cluster."""

    hosts: tuple[Host, ...]
    guests: tuple[Guest, ...] = ()


class HtoolsFailed(Exception):
    """A tool did not do what was asked of it; the message is its own."""


@dataclass(frozen=True, slots=True)
class Balanced:
    """What hbal did: where VMs are now, with how many moves, and the score before and after."""

    host_of: Mapping[str, str]
    move_count: int
    score_before: float
    score_after: float


def is_installed() -> bool:
    """Tell whether both tools are there."""
    return all(shutil.which(tool) for tool in ("hspace", "hbal"))


def to_data(layout: Layout) -> str:
    """Write a cluster in the text format of htools."""
    used: dict[str, int] = {}
    for guest in layout.guests:
        used[guest.host] = used.get(guest.host, 0) + guest.memory_mib
    hosts = [
        f"{host.name}|{host.memory_mib + _SPARE_MIB}|0|{host.memory_mib + _SPARE_MIB - used.get(host.name, 0)}|"
        f"{_DISK_MIB}|{_DISK_MIB}|{host.cpus}|{'N' if index else 'M'}|uuid-1|1||N|0|0|1.0"
        for index, host in enumerate(layout.hosts)
    ]
    guests = [
        f"{guest.name}|{guest.memory_mib}|0|{guest.cpus}|running|Y|{guest.host}||ext||0|-|N" for guest in layout.guests
    ]
    sections: Sequence[Sequence[str]] = (
        ["group|uuid-1|preferred||"],
        hosts,
        guests,
        [],
        [f"|{_POLICY}", f"group|{_POLICY}"],
    )
    # Every line of a section ends, and an empty line separates sections: an empty one is two empty lines in a row.
    return "\n".join("".join(f"{line}\n" for line in lines) for lines in sections)


def count_fitting(layout: Layout, cpus: int, memory_mib: int, folder: Path) -> int:
    """Ask hspace how many more instances of a size fit, regardless of failures.

    Raises:
        HtoolsFailed: it did not say.
    """
    size = f"0,{memory_mib},{cpus}"
    # The tiered run cannot be left out, and takes its time when it begins with the largest size that is allowed.
    sizes = (f"--standard-alloc={size}", f"--tiered-alloc={size}")
    said = _run("hspace", layout, folder, *sizes, "--machine-readable", "--no-capacity-checks", "--disk-template=ext")
    found = re.search(r"^HTS_ALLOC_INSTANCES=([0-9]+)$", said, re.MULTILINE)
    if found is None or "HTS_OK=1" not in said:
        raise HtoolsFailed(f"hspace says no number: {said[-500:]}")
    return int(found[1])


def balance(layout: Layout, folder: Path, *options: str) -> Balanced:
    """Have hbal balance a cluster by memory and vCPUs.

    Args:
        options: further ones, such as `THOROUGH`.

    Raises:
        HtoolsFailed: it did not.
    """
    saved = folder / "hbal"
    said = _run("hbal", layout, folder, "--ignore-dynu", "-S", str(saved), *options)
    lines = Path(f"{saved}.balanced").read_text(encoding="ascii").split("\n\n")[2].splitlines()
    host_of = {fields[0]: fields[6] for fields in (line.split("|") for line in lines) if len(fields) > 6}
    moves = re.search(r"Solution length=([0-9]+)", said)
    before = _SCORE.search(said)
    if len(host_of) != len(layout.guests) or before is None:
        raise HtoolsFailed(f"hbal saved no whole cluster: {said[-500:]}")
    return Balanced(
        host_of,
        int(moves[1]) if moves else 0,
        float(before[1]),
        score(moved(layout, host_of), folder),
    )


def score(layout: Layout, folder: Path) -> float:
    """Have hbal score a cluster, by memory and vCPUs; lower is better.

    Raises:
        HtoolsFailed: it did not.
    """
    said = _run("hbal", layout, folder, "--ignore-dynu", "-l", "0", "-v", "-v")
    found = re.search(r"coefficients: overall ([0-9.]+)", said) or _SCORE.search(said)
    if found is None:
        raise HtoolsFailed(f"hbal says no score: {said[-500:]}")
    return float(found[1])


def moved(layout: Layout, host_of: Mapping[str, str]) -> Layout:
    """Return the cluster with its VMs elsewhere."""
    guests = (
        Guest(guest.name, guest.cpus, guest.memory_mib, host_of.get(guest.name, guest.host)) for guest in layout.guests
    )
    return Layout(layout.hosts, tuple(guests))


def _run(tool: str, layout: Layout, folder: Path, *arguments: str) -> str:
    path = folder / "cluster.data"
    path.write_text(to_data(layout), encoding="ascii")
    command: Sequence[str] = (tool, "-t", str(path), "--max-cpu=1.0", *arguments)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HtoolsFailed(f"{tool}: {error}") from error
    if done.returncode:
        raise HtoolsFailed(f"{tool} ended with {done.returncode}: {(done.stderr or done.stdout)[-500:]}")
    return done.stdout
