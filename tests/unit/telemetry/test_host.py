"""Facts and usage of the machine the tests run on."""

from __future__ import annotations

import errno
from pathlib import Path

import psutil
import pytest

from telemetry.host import UsageSampler, management_ip, nearest_existing, read_bridges, read_host_facts


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ([], "127.0.0.1"),
        (["127.0.0.1", "::1"], "127.0.0.1"),
        (["169.254.3.4", "fe80::1", "2001:db8::1"], "127.0.0.1"),
        (["169.254.3.4", "10.0.0.5", "10.0.0.6"], "10.0.0.5"),
        (["0.0.0.0", "192.0.2.1"], "192.0.2.1"),  # noqa: S104 - an address in data
    ],
)
def test_management_ip_is_the_first_reachable_ipv4_address(addresses: list[str], expected: str) -> None:
    assert management_ip(addresses) == expected


def test_host_facts_of_this_machine_fit_together() -> None:
    facts = read_host_facts()
    cpu = facts.cpu
    assert cpu.model
    assert cpu.features
    assert 1 <= cpu.socket_count * cpu.cores_per_socket * cpu.threads_per_core <= cpu.thread_count
    assert facts.memory_total_bytes > 2**26
    assert facts.hostname
    assert facts.system.kernel_version
    assert facts.system.boot_time_s > 0
    assert "lo" not in {nic.name for nic in facts.nics}
    assert all("%" not in address for nic in facts.nics for address in nic.ip_addresses)
    assert all(disk.size_bytes > 0 for disk in facts.disks)


def test_usage_sampler_measures_within_bounds_even_for_a_path_that_does_not_exist(tmp_path: Path) -> None:
    sampler = UsageSampler(tmp_path / "not" / "yet")
    sum(range(200_000))
    usage = sampler.sample()
    assert 0 <= usage.cpu_percent <= 100
    assert 0 < usage.memory_used_bytes < usage.memory_total_bytes
    assert 0 < usage.disk_used_bytes <= usage.disk_total_bytes
    assert usage.load_1m >= 0


def test_nearest_existing_climbs_to_a_directory_that_is_there(tmp_path: Path) -> None:
    assert nearest_existing(tmp_path / "a" / "b") == tmp_path
    assert nearest_existing(tmp_path) == tmp_path


def test_bridges_are_the_interfaces_with_a_bridge_directory(tmp_path: Path) -> None:
    for name in ("br1", "br0", "eth0"):
        (tmp_path / name).mkdir()
    for name in ("br0", "br1"):
        (tmp_path / name / "bridge").mkdir()
    assert read_bridges(tmp_path) == ("br0", "br1")
    assert read_bridges(tmp_path / "absent") == ()


def test_disk_that_fails_has_what_it_had_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    sampler = UsageSampler(tmp_path)
    before = sampler.sample()
    monkeypatch.setattr(psutil, "disk_usage", fail)
    after = sampler.sample()
    assert (after.disk_total_bytes, after.disk_used_bytes) == (before.disk_total_bytes, before.disk_used_bytes)
    assert after.memory_total_bytes == before.memory_total_bytes
    assert UsageSampler(tmp_path).sample().disk_total_bytes == 0
