"""What people do to a site, in the words of scenario files."""

from __future__ import annotations

from controlplane.ha.model import Shutdown
from tests.support.ha_scenarios.scenario import VmSetting
from tests.support.ha_scenarios.site import Guest, Site


class UnknownCommand(ValueError):
    """A scenario says something that this runner does not know."""


def obey(site: Site, command: str) -> float:
    """Carry out a command; returns for how many seconds the next batch waits in any case.

    Raises:
        UnknownCommand: with the command.
    """
    match command.split():
        case ["delay", seconds]:
            return float(seconds)
        case ["power", host_id, "on"]:
            site.hosts[host_id].power_on()
        case ["power", host_id, "off"]:
            site.power_off(host_id)
        case ["network", host_id, ("on" | "off") as turned]:
            host = site.hosts[host_id]
            host.has_network = turned == "on" and host.is_on
        case [("shutdown" | "reboot") as what, host_id]:
            if site.hosts[host_id].is_on:
                site.hosts[host_id].shutdown = Shutdown.REBOOT if what == "reboot" else Shutdown.POWER_OFF
        case ["crm", host_id, ("enable-node-maintenance" | "disable-node-maintenance") as what]:
            host = site.hosts[host_id]
            if host.is_reachable:
                host.in_maintenance = what == "enable-node-maintenance"
        case ["service", vm_id, *words]:
            _obey_for_vm(site, vm_id, words, command)
        case _:
            raise UnknownCommand(command)
    return 0.0


def _obey_for_vm(site: Site, vm_id: str, words: list[str], command: str) -> None:
    if words[0] == "add":
        state = words[2] if len(words) > 2 else "started"
        site.guests[vm_id] = Guest.of(VmSetting(vm_id, words[1], "started" if state == "enabled" else state))
        return
    guest = site.guests[vm_id]
    match words:
        case ["delete"]:
            del site.guests[vm_id]
        case [("started" | "enabled" | "stopped" | "disabled" | "ignored") as state]:
            _want(guest, "started" if state == "enabled" else state)
        case [("migrate" | "relocate") as how, target]:
            guest.command = (how == "migrate", target)
        case ["manual-migrate", target]:
            guest.running_on = {target} if guest.running_on else set()
            guest.node_id = target
        case ["lock", *kind]:
            guest.lock = kind[0] if kind else "backup"
        case ["unlock", *_]:
            guest.lock = ""
        case _:
            raise UnknownCommand(command)


def _want(guest: Guest, state: str) -> None:
    """Want something else; a VM that was given up is only taken up again by way of "disabled", or as if it were new."""
    if state == "disabled" or guest.state == "ignored":
        guest.is_given_up = False
        guest.forget_failures()
    guest.state = state
