"""What people do to a site, in the words of scenario files."""

from __future__ import annotations

from controlplane.ha.model import Shutdown
from tests.support.ha_scenarios.scenario import VmSetting
from tests.support.ha_scenarios.site import Guest, Host, Site


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
        case ["skip-round", ("crm" | "lrm") as whose, *count]:
            site.skipped_rounds[whose] += int(count[0]) if count else 1
        case ["service", vm_id, *words] if words and (vm_id in site.guests or words[0] == "add"):
            _obey_for_vm(site, vm_id, words, command)
        case [what, host_id, *words] if host_id in site.hosts:
            _obey_for_host(site, site.hosts[host_id], [what, *words], command)
        case _:
            raise UnknownCommand(command)
    return 0.0


def _obey_for_host(site: Site, host: Host, words: list[str], command: str) -> None:
    match words:
        case ["power", "on"]:
            host.power_on()
        case ["power", "off"]:
            site.power_off(host.id)
        case ["network", ("on" | "off") as turned]:
            host.has_network = turned == "on" and host.is_on
        case [("shutdown" | "reboot") as what]:
            if host.is_on:
                host.shutdown = Shutdown.REBOOT if what == "reboot" else Shutdown.POWER_OFF
        case ["cfs", ("rw" | "update") as what, "fail"]:
            host.store_faults.add(what)
        case ["cfs", ("rw" | "update") as what, "work"]:
            host.store_faults.discard(what)
        case ["crm", ("start" | "stop") as what]:
            host.may_decide = what == "start"
        case ["crm", "enable-node-maintenance"]:
            host.wants_maintenance |= host.is_reachable and host.fence is None
        case ["crm", "disable-node-maintenance"]:
            host.wants_maintenance = False
        case ["restart-lrm"]:
            pass  # A daemon that is back within its lease changes nothing.
        case _:
            raise UnknownCommand(command)


def _obey_for_vm(site: Site, vm_id: str, words: list[str], command: str) -> None:
    if words[0] == "add":
        node_id, state, is_running = (*words[1:], *["started", "0"][len(words) - 2 :])
        guest = Guest.of(VmSetting(vm_id, node_id, "started" if state == "enabled" else state))
        guest.running_on = {node_id} if is_running != "0" else set()
        site.guests[vm_id] = guest
        return
    guest = site.guests[vm_id]
    match words:
        case ["delete"]:
            del site.guests[vm_id]
        case [("started" | "enabled" | "stopped" | "disabled" | "ignored") as state]:
            _want(guest, "started" if state == "enabled" else state)
        case ["stop", _]:
            _want(guest, guest.state if guest.is_given_up else "stopped")
        case [("migrate" | "relocate") as how, target]:
            guest.command = (how == "migrate", target)
        case ["manual-migrate", target]:
            guest.running_on = {target} if guest.running_on else set()
            guest.node_id = target
        case ["lock", *kind]:
            guest.lock = kind[0] if kind else "backup"
        case ["unlock", *kind]:
            guest.lock = guest.lock if kind and kind[0] != guest.lock else ""
        case _:
            raise UnknownCommand(command)


def _want(guest: Guest, state: str) -> None:
    """Want something else; a VM that was given up is only taken up again by way of "disabled", or as if it were new."""
    if state == "disabled" or guest.state == "ignored":
        guest.is_given_up, guest.is_settling = False, guest.state == "ignored"
        guest.forget_failures()
    guest.state = state
