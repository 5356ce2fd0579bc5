"""What the simulated host can give its VMs unless its settings say otherwise: everything that needs no real device."""

from __future__ import annotations

from typing import Final

from hypervisor.abilities import Abilities, DisplayKind, HugePages, NumaNode
from hypervisor.guest_profiles import HYPERV_FEATURES
from hypervisor.hardware import TpmVersion, VideoModel

CPU_MODELS: Final = ("EPYC", "Haswell", "Nehalem", "Skylake-Server", "Westmere", "qemu64")
CPU_FEATURES: Final = ("aes", "avx", "avx2", "avx512f", "pdpe1gb", "svm", "vmx")

EVERYTHING: Final = Abilities(
    has_uefi=True,
    has_secure_boot=True,
    tpm_versions=tuple(TpmVersion),
    displays=tuple(DisplayKind),
    video_models=tuple(VideoModel),
    cpu_models=CPU_MODELS,
    known_cpu_models=CPU_MODELS,
    known_cpu_features=CPU_FEATURES,
    hyperv_features=HYPERV_FEATURES,
    huge_pages=(HugePages(2 * 1024, 65536, 65536), HugePages(1024 * 1024, 64, 64)),
    numa_nodes=(NumaNode(0, tuple(range(32)), 128 * 1024), NumaNode(1, tuple(range(32, 64)), 128 * 1024)),
    has_iommu=True,
    has_nested_virtualization=True,
    has_gpu_passthrough=False,
    can_limit_cpu=True,
    can_add_vcpus=True,
    can_remove_vcpus=True,
    can_add_memory=True,
)
