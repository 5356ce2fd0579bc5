"""What a simulated guest does with its time: what it prints, how much CPU and memory it uses.

All pure functions of the guest's age, so the mock stores times instead of running anything, and a metric read twice at
the same moment is the same.
"""

from __future__ import annotations

import hashlib
import math

from hypervisor.types import VmConfig

DEFAULT_READY_LINE = (
    "LIMIQUANTIX-GUEST READY hostname={hostname} memory_mib={memory_mib} vcpus={vcpus} kernel=mock uptime_s={uptime_s}"
)
"""The line by which a watcher knows that the guest's user space is up; real test guests print the same."""

_WAVE_PERIOD_S = 60.0
_MEMORY_SETTLES_IN_S = 20.0


def boot_lines(config: VmConfig, ready_line: str, boot_s: float) -> list[tuple[float, str]]:
    """List (second after power-on, line) for one boot, oldest first; the ready line comes at `boot_s`."""
    vcpu_count, memory_mib = config.cpu.vcpu_count, config.memory_mib
    steps = [
        (0.0, "Linux version mock (simulated) #1 SMP"),
        (0.1, f"Command line: {config.direct_boot.cmdline if config.direct_boot else 'console=ttyS0'}"),
        (0.2, f"Memory: {memory_mib * 1024 * 15 // 16}K/{memory_mib * 1024}K available"),
        (0.3, f"smp: Brought up 1 node, {vcpu_count} CPU{'s' if vcpu_count > 1 else ''}"),
        *((0.5, f"virtio_blk virtio{number}: [vd{chr(97 + number % 26)}]") for number in range(len(config.disks))),
        *((0.6, f"virtio_net eth{number}: {nic.mac_address}") for number, nic in enumerate(config.nics)),
        (0.8, "Run /init as init process"),
    ]
    lines = [(share * boot_s, f"[{share * boot_s:12.6f}] {text}") for share, text in steps]
    ready = ready_line.format(
        hostname=config.name, memory_mib=memory_mib, vcpus=vcpu_count, uptime_s=f"{boot_s:.2f}", vm_id=config.vm_id
    )
    return [*lines, (boot_s, ready)]


def console_text(config: VmConfig, ready_line: str, boot_s: float, age_s: float) -> str:
    """What the guest has printed `age_s` seconds after power-on."""
    return "".join(f"{line}\r\n" for at_s, line in boot_lines(config, ready_line, boot_s) if at_s <= age_s)


def _phase(vm_id: str) -> float:
    return int.from_bytes(hashlib.sha256(vm_id.encode()).digest()[:4]) / 2**32 * 2 * math.pi


def cpu_seconds(config: VmConfig, load: float, from_s: float, to_s: float) -> float:
    """CPU time used between two guest ages under `load` (share of all vCPUs, 0 to 1).

    The load swings around its mean with a period of a minute, each VM in its own phase, and stays between 0 and 1; this
    is the closed integral, so it never falls.
    """
    swing = 0.5 * min(load, 1 - load)
    turn = 2 * math.pi / _WAVE_PERIOD_S

    def integral(age_s: float) -> float:
        return load * age_s - swing / turn * math.cos(turn * age_s + _phase(config.vm_id))

    return config.cpu.vcpu_count * (integral(to_s) - integral(from_s)) if to_s > from_s else 0.0


def busy_vcpus(config: VmConfig, load: float, age_s: float) -> float:
    """How many of its vCPUs are busy at a guest age: the mean of the second before."""
    from_s = max(0.0, age_s - 1)
    return cpu_seconds(config, load, from_s, age_s) / (age_s - from_s) if age_s > from_s else 0.0


def memory_used_bytes(config: VmConfig, load: float, age_s: float) -> int:
    """Memory in use: a boot's worth at once, then growing towards a share that depends on the load."""
    total = config.memory_mib * 2**20
    settled = 1 - math.exp(-max(age_s, 0.0) / _MEMORY_SETTLES_IN_S)
    wave = 0.03 * math.sin(2 * math.pi * age_s / _WAVE_PERIOD_S + _phase(config.vm_id))
    return int(total * min(0.15 + settled * (0.25 + 0.5 * load + wave), 0.98))
