"""docs/operations.md on three machines with systemd, command by command, and what systemd has to do with HA.

The commands are those that the page has; only passwords, tokens and each machine's own address come from here. Its
`ssh` is one that needs no network. `LIMIQUANTIX_HA=all` (`make test-ha`) runs it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.systemd_machines import (
    Machine,
    install,
    machines_on_a_switch,
    program_ssh,
    running_vms,
    skip_unless_machines,
    until,
)

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not os.environ.get("LIMIQUANTIX_HA"), reason="LIMIQUANTIX_HA=all runs it"),
]

ROOT = Path(__file__).parents[2]
ADDRESSES = {f"node{number}": f"10.0.0.{number}" for number in (1, 2, 3)}
PASSWORD = "correct horse battery staple"
ANSWERS = """
runuser() { command runuser "$@" < /run/password; }
limiquantix() { command limiquantix "$@" < /run/password; }
"""
"""What asks for a password reads it."""
CALLER = "export LIMIQUANTIX_SERVER=https://10.0.0.1:8080 LIMIQUANTIX_CA=/etc/limiquantix/ca.pem; exec limiquantix "
SHELL_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STEP = re.compile(r"^\*\*(\d)\. ", re.MULTILINE)
VM = "db-1"
QUIET_S = 20.0
"""Longer than a lease and its proof."""


@dataclass
class Guide:
    """The commands of docs/operations.md: those that install, and those of each step."""

    installing: str
    steps: dict[int, list[str]]


@dataclass
class Cluster:
    """Three machines after the guide; what it printed last; and how long it took."""

    machines: list[Machine]
    guide: Guide
    install_s: float
    guide_s: float

    def call(self, words: str) -> str:
        """Run a command of the command line as who is logged in on node1."""
        return self.machines[0].run(CALLER + words)

    def vm(self) -> dict[str, Any]:
        """Read the record of the VM."""
        found: dict[str, Any] = json.loads(self.call(f"vm show {VM} -o json"))
        return found

    def place(self) -> Machine:
        """Return the machine where the VM runs; on no other does any QEMU."""
        found = self.vm()
        places = [each for each in self.machines if each.is_on and found["id"] in running_vms(each)]
        assert len(places) == 1, [each.name for each in places]
        assert found["status"]["state"] == "RUNNING"
        return places[0]

    def is_well(self) -> bool | None:
        """Whether all hosts are healthy and end their VMs by themselves if they have to."""
        try:
            nodes = json.loads(self.call("ha status -o json"))["nodes"]
        except AssertionError:  # no control plane answers yet
            return None
        well = [each for each in nodes if each["health"] == "NODE_HEALTH_HEALTHY" and each.get("isSelfFencing")]
        return True if len(well) == len(self.machines) else None


def read_guide() -> Guide:
    page = (ROOT / "docs" / "operations.md").read_text()
    sections = {text.split("\n", 1)[0]: text for text in re.split(r"^## ", page, flags=re.MULTILINE)}
    installing = SHELL_BLOCK.findall(sections["Install on a host"])
    _, *parts = STEP.split(sections["Three machines, highly available, in ten minutes"])
    steps = {int(number): SHELL_BLOCK.findall(text) for number, text in zip(parts[::2], parts[1::2], strict=True)}
    assert [len(steps[number]) for number in range(1, 9)] == [1, 1, 1, 1, 1, 2, 1, 2], steps
    user = next(line for line in installing[1].splitlines() if line.startswith("useradd"))
    return Guide(f"{installing[0]}{user}\n", steps)


def follow(guide: Guide, machines: list[Machine], scratch: Path) -> None:
    """Do the steps 1 to 7."""
    first = machines[0]
    for machine in machines:
        machine.run(f"cd /root/limiquantix\n{guide.steps[1][0]}")
    programs = program_ssh(machines, scratch / "programs")
    anywhere = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    words = ("bash", "-ec", guide.steps[2][0].replace("deploy/", f"{ROOT}/deploy/"))
    subprocess.run(words, cwd=scratch, env=anywhere, check=True, timeout=60)
    for machine in machines:
        machine.run(guide.steps[3][0])
    enabling, asking = guide.steps[4][0].split("\n", 1)
    for machine in machines:
        machine.run(enabling)
    for machine in machines:
        until(partial(_health, machine, asking), f"etcd on {machine.name}")
    first.run(guide.steps[5][0])
    for machine in machines:
        machine.run(guide.steps[6][0])
        machine.run(f"echo '{PASSWORD}' > /run/password")
    until(lambda: _answers(first), "the first control plane")
    tokens = re.findall(r"^lqj1\S+$", first.run(ANSWERS + guide.steps[6][1]), re.MULTILINE)
    for machine, token in zip(machines, tokens, strict=True):
        machine.run(guide.steps[7][0].replace("address=10.0.0.1 ", f"address={machine.address} "), stdin=token)


def _health(machine: Machine, asking: str) -> bool | None:
    try:
        return True if '"health":"true"' in machine.run(asking) else None
    except AssertionError:
        return None


def _answers(machine: Machine) -> bool | None:
    asking = f"curl -s -o /dev/null -w '%{{http_code}}' --insecure https://{machine.address}:8080/ready || true"
    return True if machine.run(asking) == "200" else None


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    skip_unless_machines()
    guide, directory = read_guide(), tmp_path_factory.mktemp("machines")
    began_s = time.monotonic()
    install(directory / "installed", ROOT, guide.installing)
    install_s = time.monotonic() - began_s
    with machines_on_a_switch(directory, directory / "installed", ADDRESSES) as machines:
        for machine in machines:
            machine.switch_on()
        began_s = time.monotonic()
        follow(guide, machines, directory)
        cluster = Cluster(machines, guide, install_s, time.monotonic() - began_s)
        until(cluster.is_well, "three healthy hosts")
        for line in guide.steps[8][0].splitlines():
            cluster.call(line.removeprefix("limiquantix "))
        until(lambda: cluster.place() if _runs(cluster) else None, "the VM")
        print(f"\ninstalled in {install_s:.0f} s a machine; the guide's other steps took {cluster.guide_s:.0f} s")
        yield cluster


def _runs(cluster: Cluster) -> bool:
    return str(cluster.vm()["status"]["state"]) == "RUNNING"


def move(cluster: Cluster, to: Machine) -> None:
    if cluster.place() is not to:
        cluster.call(f"vm migrate {VM} --to {to.name}")
    assert cluster.place() is to


def test_vm_moves_between_hypervisors_that_systemd_started(cluster: Cluster) -> None:
    first, second, third = cluster.machines
    assert cluster.place() is third
    for target in (second, first, third):
        move(cluster, target)


def test_machine_whose_plug_is_pulled_is_proven_dead_and_comes_back(cluster: Cluster) -> None:
    third = cluster.machines[2]
    move(cluster, third)
    began_s = time.monotonic()

    third.pull_the_plug()

    until(lambda: True if _is_elsewhere(cluster, third) else None, "the VM elsewhere")
    print(f"\nruns elsewhere {time.monotonic() - began_s:.1f} s after the plug was pulled")
    assert cluster.place() is not third
    newest = cluster.call("ha fences").splitlines()[1]
    assert re.search(r"node3 +PROVEN .*lease-expired", newest), newest
    third.switch_on()
    until(cluster.is_well, "the host's return")
    assert cluster.place() is not third


def _is_elsewhere(cluster: Cluster, dead: Machine) -> bool:
    rows = cluster.call("vm list").splitlines()
    return any(row.startswith(f"{VM} ") and "RUNNING" in row and dead.name not in row for row in rows)


def test_guard_that_stands_still_is_replaced_by_systemd_and_the_vm_lives(cluster: Cluster) -> None:
    place, vm_id = cluster.place(), cluster.vm()["id"]
    asking = "systemctl show --property=MainPID --value limiquantix-guard"
    guard = place.run(asking)
    before = running_vms(place)[vm_id]

    place.run(f"kill -STOP {guard}")

    until(lambda: True if place.run(asking) not in (guard, "0\n") else None, "systemd replacing the guard")
    assert "Watchdog timeout" in place.run("journalctl --unit limiquantix-guard --no-pager")
    until(cluster.is_well, "the host fencing itself again")
    assert running_vms(place)[vm_id] == before


def test_programs_that_are_restarted_as_for_an_upgrade_leave_the_vm_alone(cluster: Cluster) -> None:
    place, vm_id = cluster.place(), cluster.vm()["id"]
    before, fences = running_vms(place)[vm_id], cluster.call("ha fences").splitlines()

    for command in (
        "restart limiquantix-controlplane",
        "restart limiquantix-node",
        "kill --signal=KILL limiquantix-guard",
        "restart libvirtd",
    ):
        place.run(f"systemctl {command}")
        until(cluster.is_well, f"all being well after systemctl {command}")
    time.sleep(QUIET_S)

    assert cluster.is_well()
    assert running_vms(place)[vm_id] == before
    assert len(cluster.call("ha fences").splitlines()) == len(fences)


def test_machine_that_is_shut_down_moves_its_vm_away_first_though_it_has_the_database(cluster: Cluster) -> None:
    first, vm_id = cluster.machines[0], cluster.vm()["id"]
    for machine in cluster.machines:
        machine.run("printf 'ha:\\n  shutdown_policy: migrate\\n' >> /etc/limiquantix/controlplane.yaml")
        machine.run("systemctl restart limiquantix-controlplane")
    until(cluster.is_well, "the new policy")
    move(cluster, first)
    first.run("systemctl unmask libvirt-guests; systemctl start libvirt-guests")  # as where nobody masked it

    first.run("systemctl poweroff")
    first.until_off()

    places = [each for each in cluster.machines[1:] if vm_id in running_vms(each)]
    assert len(places) == 1
    assert "-incoming" in running_vms(places[0])[vm_id]  # it was not started, it came
    first.switch_on()
    until(cluster.is_well, "the return of the database")
    ended = first.run("journalctl --boot=-1 --no-pager --output=cat --identifier=systemd").splitlines()
    gone = next(n for n, line in enumerate(ended) if line.startswith("Stopped limiquantix-node.service"))
    for unit in ("libvirt-guests.service", "limiquantix-controlplane.service", "postgresql@15-main.service"):
        begins = [n for n, line in enumerate(ended) if line.startswith(f"Stopping {unit}")]
        assert begins, f"{unit} did not run"
        assert begins[-1] > gone, f"{unit} was stopped before the node daemon had ended"
    assert cluster.place() is places[0]


def test_cluster_whose_power_fails_as_a_whole_is_what_it_was_once_it_has_power(cluster: Cluster) -> None:
    for machine in cluster.machines:
        machine.pull_the_plug()

    for machine in cluster.machines:
        machine.switch_on()

    until(cluster.is_well, "three healthy hosts")
    until(lambda: True if _runs(cluster) else None, "the VM")
    cluster.place()
